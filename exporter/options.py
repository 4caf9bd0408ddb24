"""What a user may choose about an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trunkline.calibration.int8.compress import CompressOptions
from trunkline.calibration.samples.draw import DrawOptions
from trunkline.calibration.samples.sample import Samples


@dataclass(frozen=True)
class Int8Options:
    """An int8 export.

    Attributes:
        samples: what calibrates.
        judge: what the budget is judged on; by default a part of ``samples`` that does not calibrate.
        draw: how many samples, and what happens with unreadable ones.
        compress: budget, method, back end.
    """

    samples: Samples
    judge: Samples | None = None
    draw: DrawOptions = field(default_factory=DrawOptions)
    compress: CompressOptions = field(default_factory=CompressOptions)


@dataclass(frozen=True)
class ExportOptions:
    """Attributes are independent of each other.

    Attributes:
        bake: instructions to store in place of the text tower.
        int8: calibrate; None keeps every stage in float32.
        half: write a float16 variant of every stage for GPUs as well; by how much a score may differ there. None writes
            none.
        overwrite: replace the output if it is a bundle.
    """

    bake: Sequence[str] | None = None
    int8: Int8Options | None = None
    half: float | None = None
    overwrite: bool = False
