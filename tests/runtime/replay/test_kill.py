"""A process that writes a log is killed: every record that it had written is there, and the log goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.replay_kit import of_kind, recorder
from trunkline.runtime.replay.payloads import Note
from trunkline.runtime.replay.reader import Damage, Entry, ReplayLog

WRITER = """
import random, sys
from pathlib import Path
from tests.replay_kit import recorder, limits
recording = recorder(Path(sys.argv[1]), limits=limits(bytes=1 << 22))
generator = random.Random(int(sys.argv[2]))
index = int(sys.argv[3])
while True:
    size = generator.choice([1, 50, 5000, 60000])
    recording.note(f"{index} " + "x" * size)
    sys.stdout.write(f"{index}\\n")
    sys.stdout.flush()
    index += 1
"""


@pytest.mark.parametrize("repetition", range(3))
def test_kill_dash_nine(tmp_path: Path, repetition: int) -> None:
    generator, following = random.Random(), 0
    for _ in range(2):  # the second one goes on where the first was killed
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(generator.randrange(1 << 30)), str(following)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(generator.randrange(1, 40))]
        process.send_signal(signal.SIGKILL)
        acknowledged = int([*lines, *process.stdout.read().splitlines()][-1])
        process.wait()
        items = list(ReplayLog(tmp_path).items())
        found = [int(item.meta.text.split()[0]) for item in items if isinstance(item, Entry) and is_note(item)]
        assert found == list(range(found[0], found[-1] + 1))
        assert found[-1] in (acknowledged, acknowledged + 1)
        assert not any(isinstance(item, Damage) for item in items)
        following = found[-1] + 1
    with recorder(tmp_path) as recording:
        recording.note(f"{following} by the test")
    assert [entry.meta for entry in of_kind(tmp_path, Note)][-1] == Note(f"{following} by the test")


def is_note(entry: Entry) -> bool:
    return isinstance(entry.meta, Note)
