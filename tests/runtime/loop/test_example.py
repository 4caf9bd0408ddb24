"""The example of a loop runs with an ensemble that only takes its time, tells the story and draws it."""

from __future__ import annotations

import importlib.util
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trunkline.runtime import Decision
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.window import SensorWindow

EXAMPLES = Path(__file__).parents[3] / "examples"


class Busy:
    """An ensemble that answers after a while."""

    def __init__(self, form: SensorForm | None) -> None:
        self.sensor = form
        self.bundle = SimpleNamespace(
            manifest=SimpleNamespace(actions=SimpleNamespace(history_length=10, action_dim=7))
        )

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def encode_frame(self, image: Any, /) -> None:
        time.sleep(0.004)

    def encode_sensor(self, window: SensorWindow, /) -> None:
        time.sleep(0.002)

    def score(self, image: Any, instruction: Any, histories: Any, /, *, sensor: Any) -> Decision:
        return Decision(np.zeros(len(histories), np.float32), 0, 0, np.zeros((1, len(histories)), np.float32))


def run(monkeypatch: pytest.MonkeyPatch, form: SensorForm | None, *arguments: str) -> None:
    spec = importlib.util.spec_from_file_location("sensor_loop", EXAMPLES / "03_sensor_loop.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(example, "load", lambda path: Busy(form))
    monkeypatch.setattr("sys.argv", ["03_sensor_loop.py", "bundle", *arguments])
    example.main()


def words(svg: Path) -> str:
    return " ".join(each.text or "" for each in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text"))


def test_with_a_sensor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form = SensorForm(channels=6, samples=65, steps=65)
    run(monkeypatch, form, "--seconds", "2.5", "--plots", str(tmp_path / "plots"))
    told = capsys.readouterr().out
    for each in ("vision", "sensor", "scoring", "decisions", "age of the frame at a decision"):
        assert each in told
    ages, rates = words(tmp_path / "plots" / "loop_ages.svg"), words(tmp_path / "plots" / "loop_rates.svg")
    for each in ("age of the frame", "age of the sensor", "bound 500 ms", "bound 300 ms", "camera hangs", "decided"):
        assert each in ages
    for each in ("runs per second", "vision", "sensor", "scoring", "time since the start (s)"):
        assert each in rates
    assert (tmp_path / "plots" / "loop_ages.svg").stat().st_size < 200_000


def test_without_a_sensor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, None, "--seconds", "1.2", "--plots", str(tmp_path))
    assert "age of the sensor" not in words(tmp_path / "loop_ages.svg")
    assert "sensor" not in words(tmp_path / "loop_rates.svg").replace("sensor's clock", "")
