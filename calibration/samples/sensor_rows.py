"""Sensor windows of a data set: which file its metadata names, and which window a row names.

::

    "_metadata": {"sensor": {"file": "sensor.npz", "rate_hz": 650.0}, ...}
    "samples": [{"sensor_window": 3, ...}, {...}]      # the second has no sensor

The file lies beside the JSON file, or below, and holds windows that are cut already (``timestamps``, ``data``). They
stay on the disk until they are looked at. A row without ``sensor_window``, or with null, has no sensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trunkline.calibration.samples.image_folder import inside
from trunkline.calibration.samples.sample import SensorExcerpt
from trunkline.calibration.windows.rates import require_rate
from trunkline.calibration.windows.recording import WindowedRecording, open_recording
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.files import name_problem
from trunkline.runtime.sensor.form import MAX_RATE_HZ
from trunkline.runtime.sensor.window import SensorWindow

#: Takes a problem, in words.
Report = Callable[[str], None]
_KEYS = {"file", "rate_hz"}


class SensorRows:
    """The windows of a data set's sensor file. Any number of threads may use one.

    Attributes:
        recording: the file, opened.
        rate_hz: as the metadata states it.
    """

    def __init__(self, recording: WindowedRecording, rate_hz: float) -> None:
        """``rate_hz`` is held against the recording where that can tell. Raises DatasetError if they differ."""
        require_rate(recording.rate_hz, rate_hz, recording.path)
        self.recording, self.rate_hz = recording, rate_hz
        self._excerpts: dict[int, SensorExcerpt] = {}

    def excerpt(self, row: int) -> SensorExcerpt:
        """Window ``row``; samples that name the same one share it."""
        name = f"{self.recording.path}, window {row}"
        return self._excerpts.setdefault(row, SensorExcerpt(name, lambda: self._window(row)))

    def _window(self, row: int) -> SensorWindow:
        end_ns = round(float(self.recording.stamps[row]) * 1e9)
        return SensorWindow(self.recording.window(row), self.rate_hz, end_ns)


class SensorReader:
    """Reads what the metadata and the rows of one JSON file say of its sensor; wrong entries are reported.

    Used by one thread.

    Attributes:
        rows: the windows, None where the metadata names none, or none that can be used.
    """

    def __init__(self, metadata: Mapping[str, Any], path: Path, report: Report) -> None:
        """Opens the file that the metadata of ``path`` names."""
        self._report = report
        self._named = metadata.get("sensor") is not None
        self.rows = self._open(metadata["sensor"], path) if self._named else None

    def excerpt(self, row: Mapping[str, Any], name: str) -> SensorExcerpt | None:
        """The sensor's window of the row called ``name``."""
        window = row.get("sensor_window")
        if window is None:
            return None
        if type(window) is not int:
            self._report(f"{name}: sensor_window {window!r:.60} is not a whole number")
        elif not self._named:
            self._report(f"{name}: sensor_window {window}, but _metadata names no sensor")
        elif self.rows is not None and not 0 <= window < len(self.rows.recording):
            self._report(f"{name}: sensor_window {window} does not exist, there are {len(self.rows.recording)}")
        elif self.rows is not None:
            return self.rows.excerpt(window)
        return None

    def _open(self, stated: object, path: Path) -> SensorRows | None:
        problems = _problems(stated)
        if problems or not isinstance(stated, dict):
            for problem in problems:
                self._report(f"_metadata.sensor{problem}")
            return None
        file = path.parent / stated["file"]
        if not inside(file, path.parent):
            self._report(
                f"_metadata.sensor.file {stated['file']!r:.60} is a link that leads out of the data set's folder"
            )
            return None
        try:
            recording = open_recording(file)
            if isinstance(recording, WindowedRecording):
                return SensorRows(recording, float(stated["rate_hz"]))
            self._report(f"_metadata.sensor.file {stated['file']!r}: a raw recording, not windows")
        except DatasetError as error:
            self._report(f"_metadata.sensor.file {stated['file']!r}: {_told(error)}")
        return None


def _problems(stated: object) -> list[str]:
    if not isinstance(stated, dict):
        return [f" {stated!r:.60} is not an object with file and rate_hz"]
    problems = [f" has no {key}" for key in sorted(_KEYS - set(stated))]
    problems += [f" has the unknown key {key!r:.60}" for key in stated if key not in _KEYS]
    file, rate = stated.get("file", "sensor.npz"), stated.get("rate_hz", 1.0)
    problem = name_problem(file) if isinstance(file, str) else "is not a name"
    if problem:
        problems.append(f".file {file!r:.60} {problem}")
    if type(rate) not in (int, float) or not 0 < rate <= MAX_RATE_HZ:
        problems.append(f".rate_hz {rate!r:.60} is not above 0 and up to {MAX_RATE_HZ:g}")
    return problems


def _told(error: DatasetError) -> str:
    """An error of the sensor's file within a list of problems."""
    found = "; ".join(map(str, error.found)) if isinstance(error.found, list) else error.found
    expected = f", expected {error.expected}" if error.expected is not None else ""
    return f"{error.problem}: {found}{expected}"
