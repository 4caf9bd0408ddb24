"""``trunkline windows``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from trunkline.exporter.cli.options import JsonOption
from trunkline.exporter.cli.output import print_json, print_table, progress_bar, say, show, size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trunkline.calibration.windows.recording import Recording
    from trunkline.calibration.windows.store import WindowStore
    from trunkline.runtime.sensor.form import SensorForm


def command(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="npz file, raw or of windows.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="STORE", help="Directory to write.")],
    rate: Annotated[float, typer.Option(metavar="HZ", help="Samples a second; held against the recording's stamps.")],
    samples: Annotated[int, typer.Option(min=1, help="Samples of a window.")],
    every: Annotated[
        Optional[float],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Option(metavar="SECONDS", help="Cut a window at equal distances."),
    ] = None,
    at: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Cut a window at each of these times, such as a camera's: one per line."),
    ] = None,
    intervals: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Cut a window from each start to each end: two columns."),
    ] = None,
    offset: Annotated[
        float, typer.Option(metavar="SECONDS", help="Added to the times: sensor's clock minus camera's.")
    ] = 0.0,
    steps: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=0, help="Rows to store, 0 for as cut. Repeat it for several. By default SAMPLES."),
    ] = None,
    resample: Annotated[str, typer.Option(help="How rows are resampled: linear, nearest, cubic.")] = "linear",
    padding: Annotated[str, typer.Option(help="Side of the zeros in short windows: left, right, none.")] = "left",
    adaptive: Annotated[bool, typer.Option("--adaptive", help="Keep windows as short as they are.")] = False,
    storage: Annotated[str, typer.Option(help="float32, float16 or int8.")] = "float32",
    skip_unusable: Annotated[
        bool, typer.Option("--skip-unusable", help="Leave out windows that fall in gaps.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store of something else.")] = False,
    json: JsonOption = False,
) -> None:
    """Cut windows from a sensor's recording once, to be read many times: for training, evaluation, calibration.

    A window at a time ends with the first sample at or after it and looks back. Times are on the sensor's clock; if the
    cameras have another, measure the difference and say so with `--offset`. A recording of windows is taken as it is.
    Does nothing if STORE holds these windows already, and refuses to touch one that holds others.

    **Examples**

        trunkline windows sensor_data_17.npz -o windows/ --rate 650 --samples 650 --at camera_times.csv

        trunkline windows sensor_data_17.npz -o small/ --rate 650 --samples 650 --every 0.2 --steps 65 --storage int8

        trunkline windows episode/sensor_data.npz -o windows/ --rate 650 --samples 650 --steps 650 --steps 65
    """
    from trunkline.calibration.windows.build import build_store
    from trunkline.calibration.windows.plan import WindowPlan
    from trunkline.calibration.windows.recording import open_recording
    from trunkline.runtime.sensor.form import SensorForm

    opened = open_recording(recording)
    reads = steps[0] if steps and steps[0] else samples
    form = SensorForm(opened.channels, rate, samples, reads, resample, padding, adaptive)  # type: ignore[arg-type]
    times = _times(opened, form, every, at, intervals)
    if times is not None:
        times = times + offset
    plan = WindowPlan(form, times, tuple(steps or ()), storage, skip_unusable)  # type: ignore[arg-type]
    with progress_bar() as progress:
        store = build_store(recording, plan, output, overwrite=overwrite, progress=progress)
    for note in _notes(store):
        say(f"note: {note}")
    if json:
        print_json({"store": output, "record": store.record})
        return
    _show(store, output)


def _times(
    recording: Recording, form: SensorForm, seconds: float | None, at: Path | None, intervals: Path | None
) -> NDArray[np.float64] | None:
    """What the three options say; at most one may be given."""
    from trunkline.calibration.windows.plan import every
    from trunkline.calibration.windows.times import read_times

    if sum(each is not None for each in (seconds, at, intervals)) > 1:
        raise typer.BadParameter("choose one of --every, --at and --intervals")
    if seconds is not None and seconds <= 0:
        raise typer.BadParameter("--every must be above 0")
    if seconds is not None:
        return every(recording.stamps, form, seconds)
    if at is not None:
        return read_times(at, 1)
    return None if intervals is None else read_times(intervals, 2)


def _notes(store: WindowStore) -> list[str]:
    """What a person should know before training on this."""
    record = store.record
    notes = []
    if record.recording.rate_hz is None:
        notes.append("the recording does not tell its rate: nothing but your word says that it is right")
    if record.recording.form == "windowed":
        notes.append("another program cut these windows; that stamps are those of the last sample is its word")
    if record.skipped:
        notes.append(f"{record.skipped} unusable windows were left out")
    if record.padded:
        notes.append(f"{record.padded} of {record.windows} windows are padded with zeros, {record.form.padding}")
    for side, count in (("begin", record.zeros_left), ("end", record.zeros_right)):
        if count:
            notes.append(f"{count} of {record.windows} windows {side} with zeros in the recording itself")
    return notes


def _show(store: WindowStore, output: Path) -> None:
    record = store.record
    rows = [
        [each.steps or "as cut", size(each.data.size), f"{each.max_error:.2%}", f"{each.rms_error:.3%}"]
        for each in record.resolutions
    ]
    title = (
        f"{record.windows} windows of {record.form.duration_s:g} s, {record.form.channels} channels, {record.storage}"
    )
    print_table(title, ["rows", "size", "largest error", "rms error"], rows)
    show("errors are shares of a channel's range")
    show(f"{output}: key {record.key[:16]}")
