"""Settings are checked all at once, and narrowed to what concerns a stage."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trunkline.runtime.engines.settings import BuildSettings, Rows, varying
from trunkline.runtime.errors import InputError
from trunkline.runtime.manifest import Stage, TensorSpec

GOOD = BuildSettings(1 << 30, profile=(Rows("N", 1, 20, 64), Rows("B", 1, 1, 1), Rows("I", 1, 1, 8)))
STAGE = Stage(
    (TensorSpec("patches", "float32", (1, 4, 2)), TensorSpec("tokens", "float32", ("I", 3, 2))),
    (TensorSpec("context", "float32", (2, "I", 5)),),
    {},
)


def test_a_stage_gets_its_own_letters_in_order() -> None:
    assert varying(STAGE) == ["I"]
    assert GOOD.for_stage(STAGE) == replace(GOOD, profile=(Rows("I", 1, 1, 8),))
    both = replace(STAGE, inputs=(*STAGE.inputs, TensorSpec("x", "float32", ("B", 1))))
    assert [rows.letter for rows in GOOD.for_stage(both).profile] == ["B", "I"]


@pytest.mark.parametrize(
    ("settings", "decisive"),
    [
        (replace(GOOD, workspace_bytes=0), "workspace_bytes is 0"),
        (replace(GOOD, workspace_bytes=(1 << 40) + 1), "workspace_bytes"),
        (replace(GOOD, optimization_level=6), "optimization_level is 6"),
        (replace(GOOD, optimization_level=-1), "optimization_level is -1"),
        (replace(GOOD, profile=(Rows("I", 1, 1, 2), Rows("I", 1, 1, 3))), "'I' twice"),
        (replace(GOOD, profile=(Rows("I", 0, 1, 2),)), "0, 1, 2 do not rise"),
        (replace(GOOD, profile=(Rows("I", 3, 2, 4),)), "3, 2, 4 do not rise"),
        (replace(GOOD, profile=(Rows("I", 1, 5, 4),)), "1, 5, 4 do not rise"),
        (replace(GOOD, profile=(Rows("I", 1, 1, (1 << 20) + 1),)), "do not rise"),
        (replace(GOOD, profile=(Rows("i", 1, 1, 1),)), "'i' is not a capital letter"),
        (replace(GOOD, profile=(Rows("IN", 1, 1, 1),)), "'IN' is not a capital letter"),
        (replace(GOOD, profile=(Rows("Ä", 1, 1, 1),)), "is not a capital letter"),
    ],
)
def test_what_cannot_be_is_refused(settings: BuildSettings, decisive: str) -> None:
    with pytest.raises(InputError, match="cannot be built with these settings") as caught:
        settings.for_stage(STAGE)
    assert decisive in str(caught.value)


def test_everything_wrong_is_told_at_once() -> None:
    wrong = BuildSettings(0, optimization_level=9, profile=(Rows("i", 2, 1, 1),))
    with pytest.raises(InputError) as caught:
        wrong.for_stage(STAGE)
    assert str(caught.value).count("\n    - ") == 4
