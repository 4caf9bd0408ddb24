"""What a user may choose about an export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trunkline.calibration.defaults import FLOAT16_SCORE_CHANGE
from trunkline.calibration.int8.compress import CompressOptions
from trunkline.calibration.samples.draw import DrawOptions
from trunkline.calibration.samples.sample import Samples
from trunkline.runtime.errors import InputError


@dataclass(frozen=True)
class Int8Options:
    """An int8 export.

    Attributes:
        samples: what calibrates.
        judge: what the budget is judged and proved on; by default parts of ``samples`` that do not calibrate.
        draw: how many samples, and what happens with unreadable ones.
        compress: budget, method, back end.
        tell: told what is thin about the samples, and what they can promise, before anything is traced.
    """

    samples: Samples
    judge: Samples | None = None
    draw: DrawOptions = field(default_factory=DrawOptions)
    compress: CompressOptions = field(default_factory=CompressOptions)
    tell: Callable[[str], None] = lambda message: None


@dataclass(frozen=True)
class HalfOptions:
    """The variant for GPUs: float16 with float32 islands.

    Attributes:
        allowed_score_change: its gate, by which the device judges it.
        int8: the layers that are int8 for processors are int8 here, too, with the same ranges; the gate is at least the
            budget of int8 then.
    """

    allowed_score_change: float = FLOAT16_SCORE_CHANGE
    int8: bool = False


@dataclass(frozen=True)
class ExportOptions:
    """What an export does.

    Attributes:
        bake: instructions to store in place of the text tower.
        int8: calibrate; None keeps every stage in float32.
        half: write a variant of every stage for GPUs as well; None writes none.
        overwrite: replace the output if it is a bundle.
    """

    bake: Sequence[str] | None = None
    int8: Int8Options | None = None
    half: HalfOptions | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuses what contradicts itself.

        Raises:
            InputError: int8 is asked for in the variant for GPUs, and nothing is calibrated.
        """
        if self.half is not None and self.half.int8 and self.int8 is None:
            raise InputError("int8 for GPUs takes its ranges from a calibration", fix="pass --precision int8 as well")
