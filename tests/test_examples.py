"""The numbered examples run as their docstrings say."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2


#: What keeps an example short.
ARGUMENTS = {"03_sensor_loop": ["--seconds", "3"]}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example: Path, bundle: Path) -> None:
    words = [sys.executable, str(example), str(bundle), *ARGUMENTS.get(example.stem, [])]
    output = subprocess.check_output(words, text=True)
    assert "scor" in output
