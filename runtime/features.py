"""What an ensemble has seen or felt, computed ahead of the decision that uses it.

A control loop encodes frames and sensor windows at their own rates and scores with the newest that are finished.
Passing features to :meth:`Ensemble.score` gives exactly what passing the frame or the window would.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import InputError
from trunkline.runtime.graph import Keys, Source, Value, on_host


@dataclass(frozen=True, eq=False)
class Features:
    """A stage's output for one input. It keeps the memory that it is in, which may be that of a GPU.

    Attributes:
        output: where it was computed.
        keys: what the output was computed from, for the executor.
        bundle: digest of the bundle that computed it.
    """

    output: Value = field(repr=False)
    keys: Keys = field(repr=False)
    bundle: str = field(repr=False)

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """(1, P, D) patches of a frame, or (J, 1, S) features of a sensor window: read-only float32, on the host."""
        return on_host(self.output)

    def source(self, bundle: str) -> Source:
        """The features as a source of the graph.

        Raises:
            InputError: another bundle computed them.
        """
        if self.bundle != bundle:
            raise InputError(
                "features were computed by another bundle",
                expected=f"{bundle[:12]}, this ensemble's",
                found=self.bundle[:12],
                fix="encode frames and windows with the ensemble that scores",
            )
        return Source(self.keys, lambda wanted: self.output)


@dataclass(frozen=True, eq=False)
class FrameFeatures(Features):
    """Patches of a frame."""


@dataclass(frozen=True, eq=False)
class SensorFeatures(Features):
    """Features of a sensor window.

    Attributes:
        end_ns: stamp of the window's last sample in nanoseconds, None where nobody knows.
    """

    end_ns: int | None = None
