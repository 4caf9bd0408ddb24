"""int8 at full scale: SigLIP2 ViT-L/16-384 and three members of the published shape, against PyTorch in float32.

    python benchmarks/full_scale_int8.py --work DIR --data DATASET.json [--repeats 5] [--write docs/benchmarks.md]

DIR is that of ``full_scale.py``: trunk, checkpoint and float32 bundle are taken from there, or made. DATA gives frames,
instructions and windows (``examples/demo/dataset.py`` writes some). The trunk's weights are random, so what is shown
is time, size and memory, and that ranges, smoothing and kernels hold at this size; accuracy is the demo's business.

1. int8 bundle: the export with calibration, its time and peak memory.
2. Vision tower: PyTorch, and float32 and int8 on each back end, taking turns; medians.
3. New frame + 20 candidates: PyTorch in the published way against float32 and int8 bundles on each back end.
4. Resident memory after a decision, in fresh processes.
5. Outliers: some normalisation channels 100 times larger and the weights that read them smaller, so that the float32
   function stays. Min-max ranges without smoothing against ours: error of the tower's output, and decisions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.full_scale import CANDIDATES, Published, log, machine, prepare, run_measured, write_into
from trunkline.calibration.int8.judge import Judge
from trunkline.calibration.int8.linears import normalise, replace_constant
from trunkline.calibration.int8.ranges import Method
from trunkline.calibration.int8.rules import CPU
from trunkline.calibration.int8.smoothing import find_sites
from trunkline.calibration.int8.stage_inputs import StageInputs
from trunkline.calibration.int8.stage_plan import RangeOptions, make_plan, save, watched_values
from trunkline.calibration.samples.bundle_needs import BundleNeeds
from trunkline.calibration.samples.draw import DrawOptions, draw_samples
from trunkline.calibration.samples.sources import open_samples
from trunkline.calibration.statistics.collect import collect
from trunkline.calibration.statistics.watch import Watch
from trunkline.exporter.cut import captured, unit_rows
from trunkline.runtime import load
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.backends.threads import physical_cores
from trunkline.runtime.manifest import Stage
from trunkline.targets.latency import REPHRASINGS

BACKENDS = ("onnxruntime", "openvino")
#: What the project promises, as shares of PyTorch's time or of the float32 bundle's memory.
PROMISES = {"vision onnxruntime": 0.40, "vision openvino": 0.27, "memory": 0.45}
TIMES_FASTER = 3.3
OUTLIERS = 6
JUDGED = 24

EXPORT = """
import sys, time
from pathlib import Path
from trunkline.calibration.int8.compress import CompressOptions
from trunkline.calibration.samples.draw import DrawOptions
from trunkline.calibration.int8.outcome import Budget
from trunkline.calibration.samples.sources import open_samples
from trunkline.exporter.export import export
from trunkline.exporter.options import ExportOptions, Int8Options
checkpoint, output, data = map(Path, sys.argv[1:4])
# Random heads rank candidates by differences of 1e-3, so that winners mean nothing here.
compress = CompressOptions(Budget(max_score_change=0.5, min_agreement=0.0))
int8 = Int8Options(open_samples(data), draw=DrawOptions(calibrate=16, judge=4, prove=4), compress=compress)
started, steps, last = time.perf_counter(), {}, [None, 0.0]
def progress(step, done, total):
    now = time.perf_counter()
    if step != last[0]:
        if last[0] is not None:
            steps[last[0]] = steps.get(last[0], 0.0) + now - last[1]
        last[:] = step, now
report = export(checkpoint, output, options=ExportOptions(int8=int8, overwrite=True), progress=progress)
fused, kinds = report.calibration.fused, [each.precision for each in report.calibration.layers]
facts = {"seconds": time.perf_counter() - started, "steps": steps, "max_score_change": fused.max_score_change,
         "int8": kinds.count("int8"), "bytes": report.bundle_bytes}
"""

DECIDE = """
import sys
import numpy as np
from trunkline.runtime import load
random = np.random.default_rng(0)
ensemble = load(sys.argv[1], backend=sys.argv[2])
for _ in range(3):
    image = random.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    ensemble.score(image, "put the red block in the bowl", random.normal(0, 1, (20, 10, 7)).astype(np.float32))
"""


def export_int8(checkpoint: Path, work: Path, data: Path) -> tuple[Path, dict[str, Any]]:
    """The int8 bundle, made if it is missing, and what making it took."""
    bundle, facts = work / "int8", work / "int8.json"
    if not (bundle / "manifest.json").is_file():
        log("exporting int8")
        facts.write_text(json.dumps(run_measured(EXPORT, str(checkpoint), str(bundle), str(data))))
    return bundle, json.loads(facts.read_text())


def medians(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way, taking turns; the first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def vision_tower(published: Published, bundles: dict[str, Path], repeats: int) -> dict[str, float]:
    log("vision tower")
    random = np.random.default_rng(3)
    ensembles = {f"{name}, {backend}": (path, backend) for name, path in bundles.items() for backend in BACKENDS}
    sessions = {}
    for name, (path, backend) in ensembles.items():
        with load(path, backend=backend) as ensemble:
            sessions[name] = ensemble.open_stage("vision")
            size = ensemble.bundle.manifest.image
    pixels = random.integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)
    batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    attention = published.model.visual.trunk.blocks[-1].attn

    @torch.inference_mode()
    def reference() -> torch.Tensor:
        return unit_rows(captured(attention, lambda: published.model.encode_image(batch)))

    ways: dict[str, Callable[[], object]] = {"PyTorch": reference}
    ways |= {name: (lambda session=session: session.run({"pixels": pixels})) for name, session in sessions.items()}
    found = medians(ways, repeats)
    for session in sessions.values():
        session.close()
    return found


def new_frame(published: Published, bundles: dict[str, Path], repeats: int) -> dict[str, float]:
    """A new frame, one known instruction, 20 new candidates."""
    found: dict[str, float] = {}
    random = np.random.default_rng(4)

    def inputs() -> tuple[np.ndarray, str, np.ndarray]:
        image = random.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        return image, REPHRASINGS[0], random.normal(0, 1, (CANDIDATES, 10, 7)).astype(np.float32)

    for name, path in bundles.items():
        for backend in BACKENDS:
            log(f"new frame, {name}, {backend}")
            with load(path, backend=backend) as ensemble:
                ways = {"PyTorch": lambda: published.predict(*inputs()), "bundle": lambda: ensemble.score(*inputs())}
                times = medians(ways, repeats)
            found[f"{name}, {backend}"] = times["bundle"]
            found[f"PyTorch beside {name}, {backend}"] = times["PyTorch"]
    return found


def memory(bundles: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Resident and peak gigabytes after three decisions, each in a fresh process."""
    names = [(name, path, backend) for name, path in bundles.items() for backend in BACKENDS]
    return {f"{name}, {backend}": run_measured(DECIDE, str(path), backend) for name, path, backend in names}


def outliers(bundle: Path, data: Path, samples: int) -> dict[str, dict[str, float]]:
    """Damage of int8 in the vision tower, naive and ours, on a tower with outlier channels."""
    log("outliers")
    with load(bundle, backend="openvino") as ensemble, tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        files = tower_with_outliers(bundle, ensemble.bundle.manifest.stages["vision"], work / "float32")
        graph = files.folder / "cpu.onnx"
        drawn = draw_samples(open_samples(data), BundleNeeds.of(ensemble.bundle), DrawOptions(samples, JUDGED, 1))
        values = watched_values(graph, CPU)
        with StageInputs(ensemble, drawn.calibrating) as inputs, Watch("vision", graph, values) as watch:
            seen = collect(watch, inputs.of("vision"))
        with StageInputs(ensemble, drawn.judging) as inputs:
            decisions = inputs.whole()
        judge, judged = Judge(ensemble, decisions), [each["pixels"] for each in decisions]
        original = outputs(ensemble, None, judged)

        def damage(form: StageFiles) -> dict[str, float]:
            fused = judge.judge({"vision": form}).fused
            found = outputs(ensemble, form, judged)
            return {
                "error": relative_error(original, found),
                "recognised": recognised(original, found),
                "change": fused.max_score_change,
                "agreement": fused.winner_agreement,
            }

        found = {"float32 with outliers": damage(files)}
        ways = {"naive: min-max, no smoothing": RangeOptions(Method("minmax"), smoothing=False), "ours": RangeOptions()}
        for name, ranges in ways.items():
            plan = make_plan(files, seen, work / f"{name[:4]} plan", ranges=ranges, rules=CPU, runs=samples)
            found[name] = damage(plan.write(plan.lowest(), work / name[:4]))
    return found


def tower_with_outliers(bundle: Path, stage: Stage, folder: Path) -> StageFiles:
    model = ir.load(bundle / "stages" / "vision" / "cpu.onnx")
    normalise(model)
    enlarge_channels(model)
    save(model, folder)
    return StageFiles("vision", stage, (folder / "cpu.onnx").read_bytes(), folder)


def enlarge_channels(model: ir.Model) -> None:
    """Makes some channels of every normalisation 100 times larger, and what reads them smaller."""
    random = np.random.default_rng(5)
    for site in find_sites(model):
        if not isinstance(site.source, ir.Node):
            continue
        factors = np.ones(len(site.channels), np.float32)
        factors[random.choice(len(factors), OUTLIERS, replace=False)] = 100
        for place in (1, 2):
            value = site.source.inputs[place]
            replace_constant(model, site.source, place, value.const_value.numpy() * factors)
        for linear in site.linears:
            replace_constant(model, linear.node, 1, linear.matrix() / factors[:, None])


def outputs(ensemble: Any, files: StageFiles | None, judged: list[np.ndarray]) -> np.ndarray:
    session = ensemble.open_stage("vision", files)
    found = np.concatenate([session.run({"pixels": pixels})["patches"] for pixels in judged])
    session.close()
    return found


def recognised(exact: np.ndarray, found: np.ndarray) -> float:
    """Share of frames whose features (F, P, D) are nearest to their own exact ones, what all share taken off.

    Random heads hardly look at the image, so that their winners survive anything; this decision needs the tower.
    """
    centred = [(each - exact.mean(axis=0)).reshape(len(each), -1) for each in (exact, found)]
    first, second = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in centred)
    return float(((second @ first.T).argmax(axis=1) == np.arange(len(exact))).mean())


def relative_error(exact: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def markdown(results: dict[str, Any]) -> str:
    made, tower, frame, used = (results[name] for name in ("export", "vision", "new_frame", "memory"))
    lines = [f"Machine: {results['machine']}. {results['date']}.", ""]
    lines += ["| vision tower, batch 1 | time | share of PyTorch | promised |", "|---|---|---|---|"]
    for name, seconds in tower.items():
        promise = PROMISES.get(f"vision {name.partition(', ')[2]}", "") if name.startswith("int8") else ""
        lines.append(f"| {name} | {seconds * 1e3:.0f} ms | {seconds / tower['PyTorch']:.3f} | {promise} |")
    lines += [
        "",
        "| new frame, 20 candidates | bundle | PyTorch in turn | times faster | promised |",
        "|---|---|---|---|---|",
    ]
    for name in (name for name in frame if not name.startswith("PyTorch")):
        reference = frame[f"PyTorch beside {name}"]
        promise = TIMES_FASTER if name == "int8, openvino" else ""
        cells = f"{frame[name] * 1e3:.0f} ms | {reference * 1e3:.0f} ms | {reference / frame[name]:.2f} | {promise}"
        lines.append(f"| {name} | {cells} |")
    lines += ["", "| fresh process, three decisions | resident | peak | share of float32's resident | promised |"]
    lines += ["|---|---|---|---|---|"]
    for name, facts in used.items():
        share = facts["resident_gb"] / used[f"float32, {name.partition(', ')[2]}"]["resident_gb"]
        promise = PROMISES["memory"] if name.startswith("int8") else ""
        cells = f"{facts['resident_gb']:.2f} GB | {facts['peak_gb']:.2f} GB | {share:.2f} | {promise}"
        lines.append(f"| {name} | {cells} |")
    lines += ["", f"| vision tower with outlier channels | relative error | frames recognised among {JUDGED} | "]
    lines[-1] += "largest score change | winners agree |"
    lines += ["|---|---|---|---|---|"]
    for name, facts in results["outliers"].items():
        cells = f"{facts['error']:.4f} | {facts['recognised']:.1%} | {facts['change']:.2g} | {facts['agreement']:.1%}"
        lines.append(f"| {name} | {cells} |")
    slowest = sorted(made["steps"].items(), key=lambda step: -step[1])[:4]
    lines += [
        "",
        f"Export with 16 calibrating and 4 judged samples: {made['seconds']:.0f} s, peak {made['peak_gb']:.1f} GB, "
        f"{made['int8']} layers in int8, {made['bytes'] / 1e9:.2f} GB; longest: "
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in slowest)
        + f". Largest score change {made['max_score_change']:.2g}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/full_scale"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    _, checkpoint, float32 = prepare(arguments.work.resolve())
    int8, made = export_int8(checkpoint, arguments.work.resolve(), arguments.data.resolve())
    bundles = {"float32": float32, "int8": int8}
    results: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "export": made}
    results["memory"] = memory(bundles)
    torch.set_num_threads(physical_cores())
    published = Published(checkpoint)
    results["vision"] = vision_tower(published, bundles, arguments.repeats)
    results["new_frame"] = new_frame(published, bundles, arguments.repeats)
    del published
    results["outliers"] = outliers(float32, arguments.data, 8)
    print(json.dumps(results, indent=2))
    print(markdown(results), file=sys.stderr)
    if arguments.write:
        write_into(arguments.write, markdown(results), "full_scale_int8")


if __name__ == "__main__":
    main()
