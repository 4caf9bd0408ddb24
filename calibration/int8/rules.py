"""Which layers become int8 on which kind of target, and what a product costs there: data, not code.

Costs are nanoseconds per multiplication of a linear layer, and per call of one. They are measured by
``python benchmarks/linear_costs.py`` (docs/benchmarks.md has the table) and kept here as constants, since a search that
timed layers itself would choose differently from run to run.
"""

from __future__ import annotations

from dataclasses import dataclass

from trunkline.calibration.int8.linears import Linear


@dataclass(frozen=True)
class Costs:
    """Of one linear layer in one precision, in nanoseconds: per multiplication, per weight that is read, per call."""

    per_product_ns: float
    per_weight_ns: float
    per_call_ns: float

    def milliseconds(self, rows: float, inputs: int, outputs: int) -> float:
        """Of a layer (rows, inputs) x (inputs, outputs)."""
        weights = inputs * outputs
        return (rows * weights * self.per_product_ns + weights * self.per_weight_ns + self.per_call_ns) * 1e-6


@dataclass(frozen=True)
class PlacementRules:
    """What a family of targets does well in int8.

    Attributes:
        name: of the family.
        min_width: layers with fewer inputs or outputs stay float32.
        costs: by precision.
    """

    name: str
    min_width: int
    int8: Costs
    float32: Costs

    def allow(self, linear: Linear) -> bool:
        """Whether a layer may become int8."""
        return min(linear.size) >= self.min_width


#: x86 with VNNI, two cores. ONNX Runtime's numbers; OpenVINO's have the same ratios.
CPU = PlacementRules("cpu", min_width=16, int8=Costs(0.0014, 0.009, 10_000), float32=Costs(0.0045, 0.018, 10_000))

#: How often a stage runs for one new frame of a control loop; an instruction is met again many times.
RUNS_PER_FRAME = {"vision": 1.0, "text": 0.05, "context": 1.0, "action": 1.0, "steps": 2.0, "sensor": 2.0}
