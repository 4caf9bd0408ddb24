"""The whole path on real input, up to 200 held-out decisions in PyTorch and from the bundle, side by side.

    python examples/demo/run.py [--samples 200] [--out build/demo]

Every step is an ordinary command and is shown before it runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMMAND = Path(sys.executable).parent / "trunkline"


def step(title: str, *words: object) -> None:
    """Shows a command and runs it from the repository's root; a failure ends the demo with its exit code."""
    shown = [str(word).replace(str(ROOT) + "/", "") for word in words]
    print(f"\n== {title}\n$ {shlex.join([Path(shown[0]).name, *shown[1:]])}", flush=True)
    code = subprocess.run([str(word) for word in words], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def one_candidate_file(data: Path, out: Path) -> tuple[Path, str, Path]:
    """Image and instruction of one held-out sample, and its window among four others, for `trunkline score`."""
    content = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    sample = content["samples"][0]
    windows = content["action_histories"]
    own = sample["action_history_id"]
    others = [window for name, window in windows.items() if name != own][:4]
    candidates = out / "candidates.json"
    candidates.write_text(json.dumps([windows[own], *others]))
    image = data / content["_metadata"]["images_folder"] / sample["agent_view_image_file"]
    return image, content["instructions"][sample["instruction_id"]], candidates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo")
    arguments = parser.parse_args()
    started = time.monotonic()
    out = arguments.out.resolve()
    data, ensemble, bundle = out / "data", out / "ensemble.safetensors", out / "bundle"
    generate = [sys.executable, HERE / "dataset.py", "--out", data, "--samples", arguments.samples, "--seed", 7]
    step("held-out camera images, instructions and action windows of a simulated table", *generate)
    step("three late epochs of one run become one file", COMMAND, "merge", *members(), "-o", ensemble)
    step("is anything wrong with it?", COMMAND, "doctor", ensemble)
    step("trunk and heads become one bundle", COMMAND, "export", ensemble, "-o", bundle, "--overwrite")
    step("does it score as PyTorch does, on fresh input?", COMMAND, "verify", bundle, "--against", ensemble)
    image, instruction, candidates = one_candidate_file(data, out)
    asked = ["--image", image, "--instruction", instruction, "--candidates", candidates]
    step("one decision; candidate 0 is what the expert did", COMMAND, "score", bundle, *asked)
    held_out = ["--dataset", data / "dataset.json", "--samples", arguments.samples, "--against", ensemble]
    step("decisions among 20 candidates, PyTorch and bundle side by side", COMMAND, "eval", bundle, *held_out)
    step("how long does a call take here?", COMMAND, "bench", bundle, "-n", 50)
    print(f"\nDone in {time.monotonic() - started:.0f} s. The bundle is {bundle}.")


def members() -> list[Path]:
    return sorted((HERE / "members").glob("*.safetensors"))


if __name__ == "__main__":
    main()
