"""Hands out the checked files of a bundle's stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Arrays, StageFiles
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import Ensemble

Result = TypeVar("Result")


def with_files(bundle: Bundle, variant: str, stage: str, action: Callable[[StageFiles], Result]) -> Result:
    """What ``action`` makes of a stage, while nobody may touch the stage's files.

    Raises:
        BackendError: the bundle holds no such variant.
        BundleError: the stage's graph is refused.
        IntegrityError: the weights were touched meanwhile; what was made of them must not be used.
    """
    hands = _Hands(variant, action)
    with Ensemble(bundle, hands) as ensemble:
        ensemble.open_stage(stage)
    return hands.results[-1]


class _Hands(Generic[Result]):
    """A back end that opens nothing: a back end is what an ensemble shows a stage's files to."""

    NAME = "none"

    def __init__(self, variant: str, action: Callable[[StageFiles], Result]) -> None:
        self.VARIANT = variant
        self.results: list[Result] = []
        self._action = action

    def available(self) -> None:
        return None

    def version(self) -> str:
        return "0"

    def open_stage(self, files: StageFiles) -> _Nothing:
        self.results.append(self._action(files))
        return _Nothing()

    def int8_kernels(self, files: StageFiles) -> int:
        return 0


class _Nothing:
    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        raise NotImplementedError

    def close(self) -> None:
        return None
