"""Stage by stage: PyTorch, eager and compiled, against every back end that runs here, on a GPU or a processor.

    python benchmarks/stages.py CHECKPOINT BUNDLE [BUNDLE ...] [--device cuda] [--repeats 20] [--write PAGE]

One new frame, one instruction, 20 candidates, through each stage alone. PyTorch runs the modules that the stages were
traced from: eager in float32, eager in bfloat16 (autocast), compiled in bfloat16. Each bundle runs on every back end
that is installed and has its variant, TensorRT if `trunkline build` has made engines; back ends of a GPU are timed
with outputs left there. Ways take turns, medians are reported, as shares of compiled bfloat16, with the largest
difference of an output number from eager float32.

On a GPU, give it the bundles of `export --half` and of `export --precision int8 --half-int8`. It has run on processors
only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.full_scale import CANDIDATES, log, machine, write_into
from trunkline.calibration.dataflow import Dataflow, Tensors
from trunkline.calibration.samples.synthetic import frame, stream, windows
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.stages.modules import stage_module
from trunkline.exporter.trunk import load_trunk
from trunkline.runtime.backends import Session, named, names
from trunkline.runtime.backends.threads import physical_cores
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Manifest
from trunkline.runtime.sensor.window import SensorWindow

INSTRUCTION = "put the red block in the bowl"
BASELINE = "PyTorch bfloat16, compiled"


@dataclass(frozen=True)
class Way:
    """One way to run a stage: its name, and a call that leaves the output where it is computed."""

    name: str
    run: Callable[[], Any]


class Modules:
    """PyTorch's side: the modules of the stages on a device."""

    def __init__(self, checkpoint: Path, device: str) -> None:
        read = read_checkpoint(checkpoint)
        self._reference = PyTorchEnsemble(load_trunk(str(read.backbone)), read)
        self._device = device

    def ways(self, stage: str, inputs: Tensors) -> Iterator[Way]:
        module = stage_module(stage, self._reference).to(self._device)
        tensors = [torch.from_numpy(np.ascontiguousarray(each)).to(self._device) for each in inputs.values()]
        for name, function, half in (
            ("PyTorch float32", module, False),
            ("PyTorch bfloat16", module, True),
            (BASELINE, torch.compile(module), True),
        ):
            yield Way(name, lambda function=function, half=half: self._run(function, tensors, half))

    def _run(self, function: Callable[..., torch.Tensor], tensors: list[torch.Tensor], half: bool) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16) if half else nullcontext():
            result = function(*tensors)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return result


def inputs_of(bundle: Path) -> tuple[Manifest, dict[str, Tensors]]:
    """What each stage is fed for one new frame, computed with the fastest back end of the processor."""
    random = np.random.default_rng(0)
    (backend, *_) = [each for each in map(named, names("cpu")) if each.available() is None]
    with Ensemble(Bundle(bundle), backend) as ensemble:
        manifest = ensemble.bundle.manifest
        form = manifest.sensor.form if manifest.sensor else None
        sensor = SensorWindow(stream(random, form.samples, form.channels), form.rate_hz) if form else None
        instruction = manifest.text.instructions[:1] or (INSTRUCTION,)
        histories = windows(random, CANDIDATES, manifest.actions)
        fed = ensemble.inputs(frame(random, 480, 640), instruction, histories, sensor)
        flow, sessions = Dataflow(manifest.stages), ExitStack()

        def run(stage: str, inputs: Tensors) -> NDArray[Any]:
            session = ensemble.open_stage(stage)
            sessions.callback(session.close)
            (output,) = session.run(inputs).values()
            return output

        with sessions:
            return manifest, {name: flow.inputs(name, fed, run) for name in flow.running(fed)}


def engine_ways(bundle: Path, stage: str, inputs: Tensors, open_sessions: ExitStack) -> Iterator[Way]:
    opened = Bundle(bundle)
    for name in names():
        backend = named(name)
        if backend.available() is not None or backend.VARIANT not in opened.manifest.variants:
            continue
        ensemble = open_sessions.enter_context(Ensemble(opened, backend))
        try:
            session = ensemble.open_stage(stage)
        except BackendError as error:
            log(f"{name}, {bundle.name}, {stage}: {error}")
            continue
        open_sessions.callback(session.close)
        precision = opened.manifest.stages[stage].variants[backend.VARIANT].precision
        yield Way(f"{name}, {precision}", runner(session, inputs))


def runner(session: Session, inputs: Tensors) -> Callable[[], Any]:
    """Leaves the output on the device where the session can."""
    resident = getattr(session, "run_resident", None)
    return lambda: next(iter((resident or session.run)(inputs).values()))


def on_host(output: Any) -> NDArray[np.float32]:
    if isinstance(output, torch.Tensor):
        return output.float().cpu().numpy()
    return output if isinstance(output, np.ndarray) else output.numpy()


def measure(ways: list[Way], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds, and the largest difference from the first way, for each."""
    first = [on_host(way.run()) for way in ways]  # compiles what compiles late
    times: Mapping[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            started = time.perf_counter()
            way.run()
            times[way.name].append(time.perf_counter() - started)
    return {
        way.name: (statistics.median(times[way.name]), float(np.abs(output - first[0]).max()))
        for way, output in zip(ways, first, strict=True)
    }


def rows(stage: str, found: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    baseline = found[BASELINE][0]
    for name, (seconds, difference) in found.items():
        yield f"| {stage} | {name} | {seconds * 1e3:.2f} | {seconds / baseline:.2f} | {difference:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    torch.set_num_threads(physical_cores())
    manifest, inputs = inputs_of(options.bundles[0])
    modules = Modules(options.checkpoint, options.device)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "the processor"
    lines = [f"Machine: {machine()}; on {device}. {time.strftime('%Y-%m-%d')}.", ""]
    lines += ["| stage | way | median ms | of compiled bfloat16 | largest difference |", "|---|---|---|---|---|"]
    for stage in (name for name in manifest.stages if name in inputs):
        log(stage)
        with ExitStack() as sessions:
            ways = [*modules.ways(stage, inputs[stage])]
            for bundle in options.bundles:
                ways += engine_ways(bundle, stage, inputs[stage], sessions)
            lines += rows(stage, measure(ways, options.repeats))
    print("\n".join(lines))
    if options.write:
        write_into(options.write, "\n".join(lines), "stages")


if __name__ == "__main__":
    main()
