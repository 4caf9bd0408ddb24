"""What was found out about a stage's int8, apart from its graph, so that its other variant can be made int8 alike.

Both variants of a stage are lowered from one traced program, so their linear layers have the same names and matrices,
and one set of ranges and factors serves both. Around the layers the graphs differ: attention is one operator in one of
them and spelt out in the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trunkline.calibration.int8.linears import find_linears, normalise
from trunkline.calibration.int8.placement import place_int8
from trunkline.calibration.int8.smoothing import find_sites, smooth
from trunkline.runtime.errors import ExportError


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a stage becomes int8.

    Attributes:
        thresholds: for each layer in int8, by name, the largest magnitude of its (smoothed) input that int8 covers.
        factors: for layers that read one value, by their names, what each channel of it is divided by, (K,) float32.
    """

    thresholds: Mapping[str, float]
    factors: Mapping[frozenset[str], NDArray[np.float32]]

    def apply(self, model: ir.Model, where: object) -> None:
        """Makes a float32 model int8, in place.

        Args:
            model: another variant of the stage.
            where: stage and variant, for messages.

        Raises:
            ExportError: it has other layers, or other places where factors can be moved; it is half changed then.
        """
        normalise(model)
        layers = {linear.name for linear in find_linears(model)}
        sites = {frozenset(linear.name for linear in site.linears): site for site in find_sites(model)}
        missing = [*(set(self.thresholds) - layers)]
        missing += [" and ".join(sorted(names)) for names in set(self.factors) - set(sites)]
        if missing:
            raise ExportError(
                "a variant of a stage cannot be made int8 as the other one was",
                where=where,
                expected="the same linear layers, fed by the same values",
                found=[f"nothing like {name}" for name in sorted(missing)],
                fix="export without int8 in this variant, and please report the architecture",
            )
        for names, factors in self.factors.items():
            smooth(model, sites[names], factors)
        place_int8(model, self.thresholds, ())
