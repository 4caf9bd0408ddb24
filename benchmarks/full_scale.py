"""Full scale on this machine: SigLIP2 ViT-L/16-384 with random weights and three members of the published shape.

The reference is PyTorch used as the published system uses it: every call encodes image and text, repeats the features
for every candidate through every member, multiplies all with all and takes the diagonal. Against it, the bundle.
The bundle runs on ONNX Runtime; ``full_scale_int8.py`` compares back ends. Both ways run in one process and take turns;
medians are reported. Start-up and memory come from fresh processes.

    python benchmarks/full_scale.py --work DIR [--repeats 5] [--write docs/benchmarks.md]

DIR keeps the trunk (3.5 GB), the checkpoint and the bundle (3.7 GB), so that a second run is quicker.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.kit import SMALL, random_checkpoint
from tests.tokenizers_kit import save_bpe
from trunkline.calibration.samples.synthetic import frame, windows
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.cut import TextFeatures, captured, unit_rows
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.reference import fuse
from trunkline.exporter.trunk import load_trunk
from trunkline.runtime import load
from trunkline.runtime.backends.threads import physical_cores
from trunkline.targets.latency import REPHRASINGS

MODEL = "ViT-L-16-SigLIP2-384"
MEMBERS = 3
CANDIDATES = 20
PUBLISHED = replace(
    SMALL,
    trunk_width=1024,
    patches=576,
    pool_width=512,
    pool_layers=4,
    embedding=512,
    encoder_layers=4,
    feedforward=1024,
)
#: Each case with the least ratio that the project promises.
PROMISES = {"new frame": 1.4, "new frame, 8 rephrasings": 8.0, "new candidates": 25.0, "load and first decision": 3.0}


def log(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def prepare(work: Path) -> tuple[Path, Path, Path]:
    """Trunk folder, checkpoint and bundle, made where they are missing."""
    trunk, checkpoint, bundle = work / "trunk", work / "ensemble.pt", work / "bundle"
    weights = trunk / "open_clip_model.safetensors"
    if not weights.is_file():
        log("building the trunk with random weights")
        save_random_trunk(trunk, weights)
    if not checkpoint.is_file():
        write_checkpoint(random_checkpoint(MEMBERS, PUBLISHED, f"local-dir:{trunk}"), checkpoint)
    if not (bundle / "manifest.json").is_file():
        log("exporting the bundle")
        started = time.perf_counter()
        code = "import sys; from pathlib import Path; from trunkline.exporter.export import export; "
        code += "export(Path(sys.argv[1]), Path(sys.argv[2]), progress=lambda step, *_: None)"
        facts = run_measured(code, str(checkpoint), str(bundle))
        facts["seconds"] = time.perf_counter() - started
        (work / "export.json").write_text(json.dumps(facts))
    return trunk, checkpoint, bundle


def save_random_trunk(folder: Path, weights: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = open_clip.get_model_config(MODEL)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_bpe(folder, context_length=config["text_cfg"]["context_length"])
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), weights)


class Published:
    """PyTorch in the published way, float32."""

    def __init__(self, checkpoint: Path) -> None:
        read = read_checkpoint(checkpoint)
        self.ensemble = PyTorchEnsemble(load_trunk(str(read.backbone)), read)
        self.model = self.ensemble.trunk.model
        self.text = TextFeatures(self.model)

    @torch.inference_mode()
    def predict(self, image: np.ndarray, instruction: str, histories: np.ndarray) -> np.ndarray:
        """(N,) scores; see section 6 of the published system's description in docs/benchmarks.md."""
        batch = self.ensemble.preprocess(image).unsqueeze(0)
        tokens = self.text(self.ensemble.trunk.tokenizer([instruction]))
        attention = self.model.visual.trunk.blocks[-1].attn
        patches = unit_rows(captured(attention, lambda: self.model.encode_image(batch)))
        count = len(histories)
        actions = torch.from_numpy(histories)
        context = [
            member.context(patches.repeat(count, 1, 1), tokens.repeat(count, 1, 1)) for member in self.ensemble.members
        ]
        action = [member.action(actions) for member in self.ensemble.members]
        return (fuse(context) @ fuse(action).T).diagonal().numpy()


def compare(checkpoint: Path, bundle: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds per case, both ways taking turns, and the largest score difference seen."""
    torch.set_num_threads(physical_cores())
    log("loading both")
    published, ensemble = Published(checkpoint), load(bundle, backend="onnxruntime")
    random = np.random.default_rng(1)
    settings = published.ensemble.settings
    still = frame(random, 480, 640)
    rephrasings = list(REPHRASINGS)

    def new_frame() -> tuple[np.ndarray, list[str]]:
        return frame(random, 480, 640), rephrasings[:1]

    cases: dict[str, tuple[int, Callable[[], tuple[np.ndarray, list[str]]]]] = {
        "new frame": (repeats, new_frame),
        "new candidates": (repeats, lambda: (still, rephrasings[:1])),
        "new frame, 8 rephrasings": (max(3, repeats // 2), lambda: (frame(random, 480, 640), rephrasings)),
    }
    ensemble.score(still, rephrasings, windows(random, CANDIDATES, settings))
    published.predict(still, rephrasings[0], windows(random, CANDIDATES, settings))
    results = {}
    for name, (count, make) in cases.items():
        log(f"{name}: {count} turns")
        times: dict[str, list[float]] = {"pytorch": [], "bundle": []}
        difference = 0.0
        for _ in range(count):
            image, instructions = make()
            histories = windows(random, CANDIDATES, settings)
            started = time.perf_counter()
            expected = np.stack([published.predict(image, each, histories) for each in instructions])
            middle = time.perf_counter()
            found = ensemble.score(image, instructions, histories).scores
            times["bundle"].append(time.perf_counter() - middle)
            times["pytorch"].append(middle - started)
            difference = max(difference, float(np.abs(expected - found).max()))
        results[name] = {way: statistics.median(values) for way, values in times.items()} | {"difference": difference}
    stages = ensemble.counts()
    results["stages"] = {name: count.seconds / max(1, count.runs) for name, count in stages.items()}
    ensemble.close()
    return results


START_PYTORCH = """
import sys, time
started = time.perf_counter()
sys.path.insert(0, sys.argv[3])
from pathlib import Path
import numpy as np
from benchmarks.full_scale import Published
image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
histories = np.random.default_rng(1).normal(0, 1, (20, 10, 7)).astype(np.float32)
Published(Path(sys.argv[1])).predict(image, "put the red block in the bowl", histories)
facts = {"start_s": time.perf_counter() - started}
"""

START_BUNDLE = """
import sys, time
started = time.perf_counter()
import numpy as np
from trunkline.runtime import load
image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
histories = np.random.default_rng(1).normal(0, 1, (20, 10, 7)).astype(np.float32)
ensemble = load(sys.argv[2], backend="onnxruntime", recheck="recheck" in sys.argv)
loaded = time.perf_counter() - started
ensemble.score(image, "put the red block in the bowl", histories)
facts = {"load_s": loaded, "start_s": time.perf_counter() - started}
"""

MEMORY = """
import json
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
memory = {name: int(status[key].split()[0]) / 1e6 for name, key in
          (("peak_gb", "VmHWM"), ("resident_gb", "VmRSS"))}
print(json.dumps(memory | globals().get("facts", {})))
"""


def run_measured(code: str, *arguments: str) -> dict[str, float]:
    """Runs code in a fresh process; its ``facts`` and its memory in gigabytes."""
    command = [sys.executable, "-c", code + "\n" + MEMORY, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def starts(checkpoint: Path, bundle: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Medians over fresh processes; file caches are warm for both."""
    root = str(Path(__file__).resolve().parent.parent)
    ways = {
        "pytorch": (START_PYTORCH, ()),
        "bundle": (START_BUNDLE, ()),
        "bundle, hashing all": (START_BUNDLE, ("recheck",)),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    run_measured(START_BUNDLE, str(checkpoint), str(bundle), root)  # remembers digests, warms the file cache
    for _ in range(repeats):
        for name, (code, extra) in ways.items():
            log(f"start: {name}")
            found[name].append(run_measured(code, str(checkpoint), str(bundle), root, *extra))
    return {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}


def machine() -> str:
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in facts if line.startswith("model name")), "?")
    flags = next((line for line in facts if line.startswith("flags")), "")
    wide = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8") if f" {flag}" in flags]
    versions = f"torch {torch.__version__}, onnxruntime {__import__('onnxruntime').__version__}"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return (
        f"{model}, {physical_cores()} cores, {', '.join(wide)}, {memory:.0f} GB, "
        f"Python {platform.python_version()}, {versions}"
    )


def markdown(results: dict[str, Any]) -> str:
    lines = [f"Machine: {results['machine']}. {results['date']}.", ""]
    lines += ["| call, 20 candidates, 3 members | PyTorch | bundle | ratio | promised | largest score difference |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, promise in PROMISES.items():
        if name in results["cases"]:
            case = results["cases"][name]
            ratio = case["pytorch"] / case["bundle"]
            lines.append(
                f"| {name} | {case['pytorch'] * 1e3:.0f} ms | {case['bundle'] * 1e3:.0f} ms | {ratio:.2f} | "
                f"{promise:g} | {case['difference']:.1e} |"
            )
    start = results["starts"]
    ratio = start["pytorch"]["start_s"] / start["bundle"]["start_s"]
    lines.append(
        f"| load and first decision | {start['pytorch']['start_s']:.1f} s | {start['bundle']['start_s']:.1f} s | "
        f"{ratio:.2f} | {PROMISES['load and first decision']:g} | |"
    )
    lines += ["", "| fresh process | load | load and first decision | peak memory |"]
    lines += ["|---|---|---|---|"]
    for name, facts in start.items():
        loaded = f"{facts['load_s']:.1f} s" if "load_s" in facts else ""
        lines.append(f"| {name} | {loaded} | {facts['start_s']:.1f} s | {facts['peak_gb']:.2f} GB |")
    stages = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in results["cases"]["stages"].items())
    lines += ["", f"Mean time of a stage's run over all cases (context and text mix 1 and 8 rows): {stages}."]
    if results.get("export"):
        export_facts = results["export"]
        lines += [f"Export: {export_facts['seconds']:.0f} s, peak memory {export_facts['peak_gb']:.1f} GB."]
    return "\n".join(lines)


def write_into(page: Path, text: str, marker: str = "full_scale") -> None:
    """Replaces what stands between the page's markers."""
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    head, _, rest = page.read_text().partition(begin)
    page.write_text(head + begin + "\n" + text + "\n" + end + rest.partition(end)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/full_scale"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    _, checkpoint, bundle = prepare(arguments.work.resolve())
    exported = arguments.work / "export.json"
    results = {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "starts": starts(checkpoint, bundle, 3),
        "cases": compare(checkpoint, bundle, arguments.repeats),
        "export": json.loads(exported.read_text()) if exported.is_file() else None,
    }
    print(json.dumps(results, indent=2))
    print(markdown(results), file=sys.stderr)
    if arguments.write:
        write_into(arguments.write, markdown(results))


if __name__ == "__main__":
    main()
