"""What a bundle asks of samples: windows of its size, instructions that it can encode, and its sensor's stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from trunkline.calibration.samples.sample import CalibrationSample, WindowForm
from trunkline.calibration.samples.synthetic import WindowSettings
from trunkline.runtime import candidates
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import CandidateError, DatasetError, InstructionError, SensorError
from trunkline.runtime.manifest import ActionsEntry, SensorEntry, TextEntry
from trunkline.runtime.sensor.window import RATE_TOLERANCE, check_window
from trunkline.runtime.text import Tokenizer, clean

_LISTED = 20

#: What is wrong with an instruction, None if nothing is.
InstructionProblem = Callable[[str], str | None]


@dataclass(frozen=True)
class BundleNeeds:
    """What samples must fit.

    Attributes:
        actions: the windows of the bundle.
        instruction_problem: says what is wrong with an instruction.
        sensor: of the bundle, None for one that reads none.
    """

    actions: ActionsEntry
    instruction_problem: InstructionProblem
    sensor: SensorEntry | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> BundleNeeds:
        """The needs of a bundle.

        Raises:
            BundleError: its tokenizer is malformed.
        """
        text = bundle.manifest.text
        tokenizer_json = bundle.read(text.tokenizer) if text.tokenizer else None
        return cls(bundle.manifest.actions, instruction_check(text, tokenizer_json), bundle.manifest.sensor)


def instruction_check(text: TextEntry, tokenizer_json: bytes | None) -> InstructionProblem:
    """A check of instructions, by the tokenizer or, without one, against the baked instructions.

    Raises:
        BundleError: the tokenizer is malformed.
    """
    tokenizer = None if tokenizer_json is None else Tokenizer(text.spec, tokenizer_json)
    baked = {clean(each, text.spec.clean) for each in text.instructions}

    def problem(instruction: str) -> str | None:
        try:
            if tokenizer is not None:
                tokenizer([instruction])
            elif clean(instruction, text.spec.clean) not in baked:
                return f"not one of the {len(baked)} baked instructions"
        except InstructionError as error:
            return error.problem
        return None

    return problem


def check_form(name: str, windows: WindowForm | None, needs: BundleNeeds) -> None:
    """Compares what data say of their windows with the bundle, for every command that reads data; nothing is opened.

    Args:
        name: of the data.
        windows: what they say, None if nothing.
        needs: of the bundle.

    Raises:
        DatasetError: listing all differences.
    """
    if windows is not None:
        _refuse(name, [*form_problems(windows, needs.actions), *_stream_problems(windows, needs)])


def check_actions(name: str, windows: WindowForm, actions: WindowSettings) -> None:
    """:func:`check_form` of windows of actions alone, for logs and checkpoints.

    Raises:
        DatasetError: listing all differences.
    """
    _refuse(name, form_problems(windows, actions))


def _refuse(name: str, different: list[str]) -> None:
    if different:
        raise DatasetError(
            "the samples are of another kind than the bundle",
            where=name,
            found=different,
            fix="use the data that the ensemble was trained on, or a held-out part of it",
        )


def form_problems(form: WindowForm, actions: WindowSettings) -> list[str]:
    """How windows of actions differ from a bundle's, in words."""
    stated = [
        ("steps per window", form.history_length, actions.history_length),
        ("numbers per step", form.action_dim, actions.action_dim),
        ("padding value", form.padding_value, actions.padding_value),
    ]
    return [
        _differs(what, found, wanted)
        for what, found, wanted in stated
        if found is not None and np.float32(found) != np.float32(wanted)
    ]


def _stream_problems(windows: WindowForm, needs: BundleNeeds) -> Iterator[str]:
    """How the sensor's windows differ, if the bundle reads any; shorter ones were cut for another encoder."""
    if windows.sensor is None or needs.sensor is None:
        return
    form, (rows, channels, rate_hz) = needs.sensor.form, windows.sensor
    if channels != form.channels:
        yield _differs("sensor channels", channels, form.channels)
    if abs(rate_hz - form.rate_hz) > RATE_TOLERANCE * form.rate_hz:
        yield _differs("sensor samples a second", rate_hz, form.rate_hz)
    if rows > form.samples if form.adaptive else rows < form.samples:
        yield _differs("samples per sensor window", rows, form.samples)


def _differs(what: str, found: float, wanted: float) -> str:
    return f"{what}: {found:g}, the bundle has {wanted:g}"


def check_samples(drawn: Iterable[CalibrationSample], needs: BundleNeeds, name: str) -> None:
    """Checks instructions and windows of the samples that are going to be used; sensor windows are opened, no picture.

    Raises:
        DatasetError: listing all problems.
    """
    drawn = list(drawn)
    found = [*_instruction_problems(drawn, needs.instruction_problem), *_window_problems(drawn, needs.actions)]
    found += _sensor_problems(drawn, needs.sensor) if needs.sensor else []
    if found:
        raise DatasetError(
            "samples cannot be scored by the bundle",
            where=name,
            expected="instructions that it can encode, and windows of actions and sensor that it was trained on",
            found=found[:_LISTED] + ([f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []),
            fix="correct these samples; a bundle with baked instructions is calibrated on those",
        )


def _instruction_problems(drawn: list[CalibrationSample], problem: InstructionProblem) -> Iterator[str]:
    """One line per distinct instruction, naming the first sample that has it."""
    first: dict[str, str] = {}
    for sample in drawn:
        first.setdefault(sample.instruction, sample.id)
    for instruction, sample_id in first.items():
        if wrong := problem(instruction):
            yield f"{sample_id}: instruction {instruction!r:.80}: {wrong}"


def _sensor_problems(drawn: list[CalibrationSample], sensor: SensorEntry) -> Iterator[str]:
    for sample in drawn:
        if sample.sensor is None:
            if sensor.absent is None:
                yield f"{sample.id}: no sensor window, and the ensemble does not know what absence means"
            continue
        try:
            check_window(sample.sensor.open(), sensor.form)
        except SensorError as error:
            lines = error.found if isinstance(error.found, list) else [f"{error.problem}: {error.found}"]
            yield from (f"{sample.id}: sensor: {each}" for each in lines)


def _window_problems(drawn: list[CalibrationSample], actions: ActionsEntry) -> Iterator[str]:
    shape = (actions.history_length, actions.action_dim)
    for sample in drawn:
        if sample.histories is None:
            continue
        if np.shape(sample.histories)[1:] != shape:
            yield f"{sample.id}: windows of shape {np.shape(sample.histories)[1:]} instead of {shape}"
            continue
        try:
            candidates.prepare(sample.histories, actions)
        except CandidateError as error:
            lines = error.found if isinstance(error.found, list) else [f"{error.problem}: {error.found}"]
            yield from (f"{sample.id}: {each}" for each in lines)
        if sample.truth is not None and not 0 <= sample.truth < len(sample.histories):
            yield f"{sample.id}: truth {sample.truth} among {len(sample.histories)} windows"
