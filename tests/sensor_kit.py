"""A sensor encoder, traced and run by ONNX Runtime without a bundle around it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from trunkline.exporter.checkpoint.members import Member
from trunkline.exporter.reference import build_member
from trunkline.exporter.stages.sensor import SensorStage, StepsStage
from trunkline.exporter.stages.trace import Contract, trace
from trunkline.runtime.backends import Session, StageFiles, named
from trunkline.runtime.manifest import SensorEntry, TensorSpec
from trunkline.runtime.sensor.steps import SlidingSteps
from trunkline.runtime.sensor.window import SensorWindow, check_window

Floats = NDArray[np.float32]


class TracedEncoder:
    """Both stages of one member's encoder."""

    def __init__(self, member: Member, folder: Path, backend: str = "onnxruntime") -> None:
        self.reference = build_member(member).sensor_encoder
        shape, form = self.reference.shape, self.reference.form
        self.entry = SensorEntry(form, 1, (0,), shape.stride, shape.conv[-1], shape.features)
        samples = TensorSpec("samples", "float32", ("Q", shape.stride, shape.channels))
        steps = TensorSpec("steps", "float32", (1, "Q", shape.conv[-1]))
        window = TensorSpec("steps", "float32", (1, self.entry.blocks + 1, shape.conv[-1]))
        features = TensorSpec("sensor", "float32", (1, 1, shape.features))
        self._steps = _session(StepsStage([self.reference]), Contract("steps", (samples,), steps), folder, backend)
        self._last = _session(SensorStage([self.reference]), Contract("sensor", (window,), features), folder, backend)
        self.sliding = SlidingSteps(self.entry, self.run_steps)
        self.blocks_run: list[int] = []

    def run_steps(self, samples: Floats) -> Floats:
        """Blocks (Q, stride, C) through the first stage."""
        self.blocks_run.append(len(samples))
        return self._steps.run({"samples": samples})["steps"]

    def run_sensor(self, steps: Floats) -> Floats:
        """Steps (1, M + 1, W) through the second stage: (1, S)."""
        return self._last.run({"steps": steps})["sensor"][0]

    def features(self, window: SensorWindow) -> Floats:
        """(1, S) through both, reusing what can be."""
        check_window(window, self.entry.form)
        return self.run_sensor(self.sliding(window))

    def expected(self, samples: Floats) -> Floats:
        """(1, S) in PyTorch."""
        with torch.inference_mode():
            return self.reference(torch.from_numpy(np.array(samples)).unsqueeze(0)).numpy()

    def __enter__(self) -> TracedEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._steps.close()
        self._last.close()


def _session(module: torch.nn.Module, contract: Contract, folder: Path, backend: str) -> Session:
    stage = trace(module, contract, folder / "stages")
    graph = folder / stage.variants["cpu"].graph
    return named(backend).open_stage(StageFiles(contract.name, stage, graph.read_bytes(), graph.parent))
