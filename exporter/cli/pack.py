"""``trunkline pack``."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from trunkline.exporter.cli.options import BackboneOption, JsonOption, exporter_libraries
from trunkline.exporter.cli.output import print_json, progress_bar, say, show, size
from trunkline.runtime.errors import InputError

if TYPE_CHECKING:
    from trunkline.runtime.sensor.form import Padding, Resample, SensorForm

_SENSOR = "Members with a sensor: what the weights do not tell"


def command(
    sources: Annotated[list[Path], typer.Argument(metavar="CKPT...", help="Training checkpoints or ensembles.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="FILE.safetensors, or FILE.pt.")],
    backbone: BackboneOption = None,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads the members were trained with.")] = 8,
    history_length: Annotated[int, typer.Option(min=1, help="Steps per action window.")] = 10,
    action_dim: Annotated[int, typer.Option(min=1, help="Numbers per step; read from transformer encoders.")] = 7,
    padding_value: Annotated[float, typer.Option(help="Component 0 of a padded step.")] = -5.0,
    json: JsonOption = False,
    sensor_rate: Annotated[
        Optional[float],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Option(
            "--sensor-rate",
            metavar="HZ",
            help="Samples per second of the stream; published 650.",
            rich_help_panel=_SENSOR,
        ),
    ] = None,
    sensor_window: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--sensor-window",
            min=1,
            help="Samples of a window as it is cut from the stream; published 650, which at 650 Hz is 1 s.",
            rich_help_panel=_SENSOR,
        ),
    ] = None,
    sensor_steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--sensor-steps",
            min=1,
            help="Steps the encoder was built for; windows are resampled to them. By default those of the window.",
            rich_help_panel=_SENSOR,
        ),
    ] = None,
    sensor_resample: Annotated[
        Optional[Literal["linear", "nearest", "cubic"]],  # noqa: UP045
        typer.Option("--sensor-resample", help="How, where they differ; published linear.", rich_help_panel=_SENSOR),
    ] = None,
    sensor_padding: Annotated[
        Optional[Literal["left", "right", "none"]],  # noqa: UP045
        typer.Option(
            "--sensor-padding",
            help="Where zeros fill a window that is too short; published left. none refuses such a window.",
            rich_help_panel=_SENSOR,
        ),
    ] = None,
    sensor_adaptive: Annotated[
        bool,
        typer.Option(
            "--sensor-adaptive",
            help="Windows keep whatever length they have, up to --sensor-window, and are never padded.",
            rich_help_panel=_SENSOR,
        ),
    ] = False,
    sensor_heads: Annotated[
        int,
        typer.Option(
            "--sensor-heads", min=1, help="Attention heads of sensor encoder and fusion.", rich_help_panel=_SENSOR
        ),
    ] = 8,
    sensor_encoder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--sensor-encoder",
            metavar="FILE",
            help="File with the sensor encoder of members that fuse one but carry none: its state dict, or a "
            "checkpoint of the sensor-action system.",
            rich_help_panel=_SENSOR,
        ),
    ] = None,
) -> None:
    """Pack training checkpoints into one ensemble file: the heads without backbone and optimiser.

    The suffix chooses the form: `.safetensors` is ours (strict, versioned), `.pt` is the published one.
    Training checkpoints do not say their window, padding value and heads; the options state them.

    An encoder trained on 650 samples of a sensor (1 s) and one trained on 65 (0.1 s) have weights of the same names and
    shapes. Either loads in the other's place, and features of a wrong time scale raise no error. Nothing but the
    `--sensor-...` options records which one it is; where none is given, the published values are assumed, with a note.
    The robot then refuses a stream of another rate.

    **Examples**

        trunkline pack epoch_7.pt epoch_8.pt epoch_9.pt -o ensemble.safetensors

        trunkline pack epoch_*.pt -o fast.safetensors --sensor-rate 650 --sensor-window 65

        trunkline pack epoch_*.pt -o skewed.safetensors --sensor-window 650 --sensor-steps 65 --sensor-encoder vla.pt
    """
    with exporter_libraries("pack"):
        from trunkline.exporter.checkpoint.members import Settings
        from trunkline.exporter.checkpoint.pack import pack
    form = stated_form(
        rate_hz=sensor_rate,
        samples=sensor_window,
        steps=sensor_steps,
        resample=sensor_resample,
        padding=sensor_padding,
        adaptive=sensor_adaptive,
    )
    settings = Settings(heads, history_length, action_dim, padding_value, form, sensor_heads)
    with progress_bar() as progress:
        report = pack(
            sources, output, backbone=backbone, settings=settings, sensor_encoder=sensor_encoder, progress=progress
        )
    for note in report.notes:
        say(f"note: {note}")
    if json:
        print_json(report)
        return
    show(f"{report.output}: {len(report.members)} members ({', '.join(report.members)}) on {report.backbone}")
    show(f"before: {size(report.source_bytes)} in {len(sources)} files, after: {size(report.output_bytes)}")


@wraps(command)
def under_its_former_name(**options: Any) -> None:
    """``trunkline merge``: the same, and says what it is called."""
    say("note: `trunkline merge` is called `trunkline pack` now")
    command(**options)


def stated_form(
    *,
    rate_hz: float | None = None,
    samples: int | None = None,
    steps: int | None = None,
    resample: Resample | None = None,
    padding: Padding | None = None,
    adaptive: bool = False,
) -> SensorForm | None:
    """The stream that options state, published values where they are silent; None if all of them are.

    Raises:
        InputError: adaptive windows are to be padded.
    """
    from trunkline.runtime.sensor.form import SensorForm

    if (rate_hz, samples, steps, resample, padding, adaptive) == (None,) * 5 + (False,):
        return None
    if adaptive and padding not in (None, "none"):
        raise InputError(
            "the sensor's windows are stated in two ways",
            found=f"--sensor-adaptive, which never pads, and --sensor-padding {padding}",
            fix="drop the one that training did not use",
        )
    published = SensorForm()
    samples = published.samples if samples is None else samples
    return SensorForm(
        rate_hz=published.rate_hz if rate_hz is None else rate_hz,
        samples=samples,
        steps=samples if steps is None else steps,
        resample=resample or published.resample,
        padding=padding or published.padding,
        adaptive=adaptive,
    )
