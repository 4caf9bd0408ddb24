"""``trunkline score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from trunkline.exporter.cli.options import BackendOption, BundleArgument, JsonOption
from trunkline.exporter.cli.output import print_json, print_table, show
from trunkline.runtime.errors import CandidateError, SensorError

#: 4096 windows as JSON text stay well under this.
MAX_CANDIDATE_BYTES = 64 << 20


def command(
    bundle: BundleArgument,
    image: Annotated[Path, typer.Option("--image", metavar="FILE", help="Camera image: PNG, JPEG, ...")],
    instruction: Annotated[list[str], typer.Option("--instruction", metavar="TEXT", help="Repeat it for rephrasings.")],
    candidates: Annotated[
        Path, typer.Option("--candidates", metavar="FILE", help="Windows as .npy (N, steps, numbers) or .json lists.")
    ],
    sensor: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Option("--sensor", metavar="FILE", help="Window of the fast sensor as .npy (samples, channels)."),
    ] = None,
    sensor_rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--sensor-rate", metavar="HZ", help="Samples per second of that stream; needed with --sensor."),
    ] = None,
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Score candidate action windows for one image and instruction, best first.

    Ensembles that read a fast sensor are given the window with `--sensor` and its rate with `--sensor-rate`: nothing in
    the numbers tells one second of samples from a tenth of one.

    **Examples**

        trunkline score bundle/ --image frame.png --instruction "put the red block in the bowl" --candidates c.npy

        trunkline score bundle/ --image f.png --instruction "go on" --candidates c.npy --sensor w.npy --sensor-rate 650
    """
    from trunkline.runtime.backends import described
    from trunkline.runtime.ensemble import load
    from trunkline.runtime.image import open_image

    histories = read_candidates(candidates)
    window = read_window(sensor, sensor_rate)
    picture = open_image(image)
    with load(bundle, backend=backend) as ensemble:
        decision = ensemble.score(picture, list(instruction), histories, sensor=window)
        members, ran_on = ensemble.members, described(ensemble.backend)
    if json:
        print_json(
            {
                "instructions": instruction,
                "members": members,
                "backend": ran_on,
                **vars(decision),
                "disagreement": decision.disagreement,
            }
        )
        return
    scores, spread = decision.scores.max(axis=0), decision.disagreement
    chosen = decision.scores.argmax(axis=0)
    order = (-scores).argsort(kind="stable")
    rows: list[list[object]] = [
        [rank, int(index), f"{scores[index]:+.4f}", f"{spread[chosen[index], index]:.4f}", instruction[chosen[index]]]
        for rank, index in enumerate(order, 1)
    ]
    print_table(f"best candidate: {decision.best}", ["rank", "candidate", "score", "disagreement", "instruction"], rows)
    show(ran_on)


def read_window(file: Path | None, rate_hz: float | None) -> Any:
    """A sensor window from a ``.npy`` file, None without one.

    Raises:
        SensorError: the file cannot be read, or only one of file and rate is given.
    """
    if file is None and rate_hz is None:
        return None
    import numpy as np

    from trunkline.runtime.sensor.window import SensorWindow

    if file is None or rate_hz is None:
        raise SensorError(
            "a sensor window and the rate of its stream belong together",
            found="--sensor alone" if rate_hz is None else "--sensor-rate alone",
            fix="pass both, such as --sensor window.npy --sensor-rate 650",
        )
    try:
        return SensorWindow(np.load(file, allow_pickle=False), rate_hz)
    except (OSError, ValueError, EOFError) as error:
        raise SensorError(
            "cannot read a sensor window",
            where=file,
            expected=".npy array (samples, channels) float32",
            found=str(error),
            fix="write it with numpy.save",
        ) from error


def read_candidates(file: Path) -> Any:
    """Windows from a ``.npy`` or ``.json`` file.

    Raises:
        CandidateError: the file cannot be read as numbers.
    """
    import numpy as np

    from trunkline.runtime.record import RecordError, parse

    try:
        if file.stat().st_size > MAX_CANDIDATE_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes, more than {MAX_CANDIDATE_BYTES}")
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        return parse(file.read_bytes())
    except (OSError, ValueError, EOFError, RecordError) as error:
        raise CandidateError(
            "cannot read candidates",
            where=file,
            expected=".npy array (N, steps, numbers), or .json list of windows, each a list of steps",
            found=str(error),
            fix="write them with numpy.save or json.dump",
        ) from error
