"""What each stage of a verifier is fed for a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.calibration.dataflow import Dataflow
from trunkline.calibration.samples.sample import CalibrationSample
from trunkline.calibration.samples.synthetic import candidates_for
from trunkline.calibration.statistics.collect import Inputs, StageInput
from trunkline.runtime.backends import Session
from trunkline.runtime.ensemble import Ensemble


class StageInputs:
    """Inputs of stages for samples, made when they are asked for. Not for several threads.

    Stages that others need, such as vision and text for context, are compiled when they are first run, and freed by
    :meth:`close`.
    """

    def __init__(self, ensemble: Ensemble, samples: Sequence[CalibrationSample]) -> None:
        self._ensemble, self._samples = ensemble, samples
        self._flow = Dataflow(ensemble.bundle.manifest.stages)
        self._sessions: dict[str, Session] = {}

    def of(self, stage: str) -> list[StageInput]:
        """Digest and loader of every sample's input; none of samples without what the stage reads."""
        usable = [each for each in self._samples if self._has(stage, each)]
        return [(self._digest(stage, each), lambda each=each: self._make(stage, each)) for each in usable]  # type: ignore[misc]

    def whole(self) -> list[Inputs]:
        """Inputs of a whole decision for every sample, with made-up windows where a sample has none."""
        return [self._fed(each) for each in self._samples]

    def close(self) -> None:
        """Frees what was compiled."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def __enter__(self) -> StageInputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _has(self, stage: str, sample: CalibrationSample) -> bool:
        if stage in ("steps", "sensor"):
            return sample.sensor is not None
        return stage != "action" or sample.histories is not None

    def _digest(self, stage: str, sample: CalibrationSample) -> str:
        """Of everything that the stage's input depends on."""
        parts = [self._ensemble.bundle.digest, stage, sample.digest]
        if stage == "action" and sample.histories is not None:
            parts.append(hashlib.sha256(np.ascontiguousarray(sample.histories).tobytes()).hexdigest())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _make(self, stage: str, sample: CalibrationSample) -> Inputs:
        return self._flow.inputs(stage, dict(self._fed(sample)), self._run)

    def _fed(self, sample: CalibrationSample) -> Inputs:
        histories = candidates_for(sample, self._ensemble.bundle.manifest.actions)
        # An ensemble without a sensor may be calibrated on samples that have one.
        felt = sample.sensor if self._ensemble.bundle.manifest.sensor else None
        window = None if felt is None else felt.open()
        return self._ensemble.inputs(sample.open(), [sample.instruction], histories, window)

    def _run(self, stage: str, inputs: Inputs) -> NDArray[Any]:
        if stage not in self._sessions:
            self._sessions[stage] = self._ensemble.open_stage(stage)
        (output,) = self._sessions[stage].run(inputs).values()
        return output
