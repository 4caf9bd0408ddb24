"""The whole path on real input, up to held-out decisions in PyTorch, from a float32 and from an int8 bundle.

    python examples/demo/run.py [--samples 1000] [--pytorch 200] [--out build/demo]

Every step is an ordinary command and is shown before it runs. The last ones repeat the path with an ensemble that feels
as well, and decide with and without its sensor.
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
    parser.add_argument("--samples", type=int, default=1000, help="held-out decisions, float32 against int8")
    parser.add_argument("--pytorch", type=int, default=200, help="how many of them are taken in PyTorch as well")
    parser.add_argument("--sensor", type=int, default=400, help="held-out decisions of the ensemble with a sensor")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo")
    arguments = parser.parse_args()
    started = time.monotonic()
    out = arguments.out.resolve()
    data, seen, ensemble = out / "data", out / "calibration", out / "ensemble.safetensors"
    float32, int8 = out / "float32", out / "int8"
    generate = [sys.executable, HERE / "dataset.py", "--out"]
    step(
        "held-out camera images, instructions and action windows of a simulated table",
        *[*generate, data, "--samples", arguments.samples, "--seed", 7],
    )
    step("others, to calibrate int8 with", *generate, seen, "--samples", 1450, "--seed", 11)
    step("three late epochs of one run become one file", COMMAND, "pack", *members("members"), "-o", ensemble)
    step("is anything wrong with it?", COMMAND, "doctor", ensemble)
    step("trunk and heads become one bundle", COMMAND, "export", ensemble, "-o", float32, "--overwrite", "--no-report")
    step("does it score as PyTorch does, on fresh input?", COMMAND, "verify", float32, "--against", ensemble)
    # Sessions of small stages start faster on ONNX Runtime, and the judge starts many.
    quantise = ["--precision", "int8", "--calibrate", seen / "dataset.json", "--backend", "onnxruntime"]
    step("the same in int8, within a budget", COMMAND, "export", ensemble, "-o", int8, "--overwrite", *quantise)
    image, instruction, candidates = one_candidate_file(data, out)
    asked = ["--image", image, "--instruction", instruction, "--candidates", candidates]
    step("one decision; candidate 0 is what the expert did", COMMAND, "score", int8, *asked)
    held_out = ["--dataset", data / "dataset.json", "--samples"]
    step(
        "decisions among 20 candidates, PyTorch and float32 side by side",
        *[COMMAND, "eval", float32, *held_out, arguments.pytorch, "--against", ensemble],
    )
    step(
        "more of them, float32 and int8 side by side",
        *[COMMAND, "eval", int8, *held_out, arguments.samples, "--beside", float32],
    )
    step("how long does a call take here?", COMMAND, "bench", int8, "-n", 50)
    sizes = [sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) for bundle in (float32, int8)]
    print(f"\n{float32}: {sizes[0] / 1e6:.2f} MB\n{int8}: {sizes[1] / 1e6:.2f} MB, {sizes[1] / sizes[0]:.3f} of it")
    with_sensor(out / "sensor", arguments.sensor)
    print(f"\nDone in {time.monotonic() - started:.0f} s. {int8}.html shows what int8 cost.")


def with_sensor(out: Path, samples: int) -> None:
    """The same for members that feel, more briefly."""
    data, seen, ensemble = out / "data", out / "calibration", out / "ensemble.safetensors"
    float32, int8 = out / "float32", out / "int8"
    generate = [sys.executable, HERE / "dataset.py", "--sensor", "--out"]
    step(
        "held-out episodes of a hand that feels: contact force and A-scan",
        *[*generate, data, "--samples", samples, "--seed", 7],
    )
    step("others, to calibrate int8 with", *generate, seen, "--samples", 1450, "--seed", 11)
    step("three late epochs with a sensor", COMMAND, "pack", *members("sensor_members"), "-o", ensemble)
    step("does the sensor reach the scores?", COMMAND, "doctor", ensemble)
    step("one bundle, with a sensor stage", COMMAND, "export", ensemble, "-o", float32, "--overwrite", "--no-report")
    step("as PyTorch, on fresh input?", COMMAND, "verify", float32, "--against", ensemble)
    quantise = ["--precision", "int8", "--calibrate", seen / "dataset.json", "--backend", "onnxruntime"]
    step("in int8, within a budget", COMMAND, "export", ensemble, "-o", int8, "--overwrite", *quantise)
    held_out = ["--dataset", data / "dataset.json", "--samples", samples]
    step("decisions with the sensor, float32 and int8", COMMAND, "eval", int8, *held_out, "--beside", float32)
    step("the same decisions without it", COMMAND, "eval", float32, *held_out, "--without-sensor")


def members(folder: str) -> list[Path]:
    return sorted((HERE / folder).glob("*.safetensors"))


if __name__ == "__main__":
    main()
