"""The record of a store: what it was made of, and what its files must be.

A store's key is a digest over everything that its content depends on: the recording's bytes, the form, the cutting
rule with its times, storage and resolutions, and the version of this format. Two stores with one key hold the same
windows; a change of anything gives another key.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trunkline.calibration.windows.plan import Rule, Storage, WindowPlan
from trunkline.calibration.windows.recording import Recording
from trunkline.runtime import record
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.record import shown
from trunkline.runtime.sensor.form import SensorForm

FORMAT, SCHEMA = "trunkline-windows", 1
RECORD_NAME = "windows.json"
INDEX_NAME = "index.safetensors"


@dataclass(frozen=True)
class RecordingFacts:
    """The recording that windows were cut from.

    Attributes:
        form: "raw" or "windowed".
        sha256: of the file.
        entries: its samples or windows.
        rate_hz: measured; None where the file does not tell.
    """

    form: Literal["raw", "windowed"]
    sha256: str
    entries: int
    rate_hz: float | None


@dataclass(frozen=True)
class CutFacts:
    """How windows were cut.

    Attributes:
        rule: "points", "intervals" or "windowed".
        times_sha256: of the times, in hex.
        skip_unusable: whether unusable windows were to be left out.
    """

    rule: Rule
    times_sha256: str
    skip_unusable: bool


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256 in hex of a file of the store."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Resolution:
    """All windows with one number of rows.

    Attributes:
        steps: rows of each; 0 for windows as they were cut.
        data: the file ``windows-<steps>.bin``, or ``windows-cut.bin``.
        max_error: of a stored number, as a share of its channel's range over all windows.
        rms_error: likewise, root of the mean square.
    """

    steps: int
    data: FileFacts
    max_error: float
    rms_error: float


@dataclass(frozen=True)
class StoreRecord:
    """The file ``windows.json``.

    Attributes:
        format: "trunkline-windows".
        schema: version of this format.
        key: digest over what the content depends on.
        recording: what was read.
        form: as planned.
        cut: how windows were cut.
        storage: how numbers are stored.
        windows: W.
        padded: windows with padding in them.
        zeros_left: windows that begin with a row of zeros which is no padding of ours. Many of them in a recording of
            windows are another program's padding, on this side.
        zeros_right: windows that end with one.
        skipped: unusable windows that were left out.
        resolutions: what is stored.
        index: the file ``index.safetensors``.
        seal: SHA-256 in hex of this record with an empty seal.
    """

    format: str
    schema: int
    key: str
    recording: RecordingFacts
    form: SensorForm
    cut: CutFacts
    storage: Storage
    windows: int
    padded: int
    zeros_left: int
    zeros_right: int
    skipped: int
    resolutions: tuple[Resolution, ...]
    index: FileFacts
    seal: str = ""

    def sealed(self) -> StoreRecord:
        """The same with its seal."""
        text = record.encode(replace(self, seal=""))
        return replace(self, seal=hashlib.sha256(text).hexdigest())


@dataclass(frozen=True)
class StoreIdentity:
    """Everything that a store's content depends on.

    Attributes:
        format: "trunkline-windows".
        schema: version of this format.
        recording: SHA-256 of the recording, in hex.
        form: as planned.
        cut: how windows are cut.
        storage: how numbers are stored.
        steps: the resolutions.
    """

    format: str
    schema: int
    recording: str
    form: SensorForm
    cut: CutFacts
    storage: Storage
    steps: tuple[int, ...]

    @property
    def key(self) -> str:
        """Digest of all of it, in hex."""
        return hashlib.sha256(record.encode(self, compact=True)).hexdigest()

    def differences(self, found: StoreIdentity) -> list[str]:
        """What ``found`` has that differs, in words."""
        wanted, other = asdict(self), asdict(found)
        return [f"{name}: {shown(other[name])} instead of {shown(wanted[name])}" for name in _different(wanted, other)]


def _different(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    for group in ("form", "cut"):
        for each in (wanted, found):
            each |= {f"{group}.{name}": value for name, value in each.pop(group).items()}
    return [name for name in wanted if wanted[name] != found[name]]


def planned(sha256: str, plan: WindowPlan) -> StoreIdentity:
    """The identity of a store of this plan, cut from a recording of this digest."""
    form = replace(plan.form, rate_hz=float(plan.form.rate_hz))  # a record spells 650.0, never 650
    return StoreIdentity(FORMAT, SCHEMA, sha256, form, cut_facts(plan), plan.storage, plan.steps)


def identity_of(found: StoreRecord) -> StoreIdentity:
    """The identity of a store that is there."""
    steps = tuple(each.steps for each in found.resolutions)
    return StoreIdentity(
        found.format, found.schema, found.recording.sha256, found.form, found.cut, found.storage, steps
    )


def cut_facts(plan: WindowPlan) -> CutFacts:
    """What a record says of a plan's cutting."""
    return CutFacts(plan.rule, plan.times_sha256, plan.skip_unusable)


def recording_facts(recording: Recording, sha256: str) -> RecordingFacts:
    """What a record says of a recording."""
    form: Literal["raw", "windowed"] = "raw" if recording.form == "raw" else "windowed"
    return RecordingFacts(form, sha256, len(recording), recording.rate_hz)


def data_name(steps: int) -> str:
    """Name of a resolution's file."""
    return f"windows-{steps or 'cut'}.bin"


def read_record(text: bytes, where: Path) -> StoreRecord:
    """Reads and checks a record.

    Raises:
        DatasetError: listing every difference.
    """
    try:
        content = record.parse(text)
        _check_version(content, where)
        found = record.build(content, StoreRecord)
    except record.RecordError as error:
        raise malformed(where, error.differences) from error
    problems = list(found.form.problems())
    steps = [each.steps for each in found.resolutions]
    if found.windows < 1 or not steps or len(set(steps)) < len(steps) or min(steps) < 0:
        problems.append(f"{found.windows} windows with {steps} rows")
    if record.encode(found.sealed()) != text:
        problems.append("its seal is not that of its content")
    if problems:
        raise malformed(where, problems)
    return found


def malformed(where: Path, found: object) -> DatasetError:
    """The error for a store that is not as it was written."""
    return DatasetError(
        "a store of windows is damaged",
        where=where,
        expected=f"{FORMAT}, schema {SCHEMA}, as it was written",
        found=found,
        fix="build it again from the recording, replacing this one",
    )


def _check_version(content: object, where: Path) -> None:
    found = {key: content.get(key) for key in ("format", "schema")} if isinstance(content, dict) else {}
    if found == {"format": FORMAT, "schema": SCHEMA}:
        return
    raise DatasetError(
        "this is not a store of windows that this version reads",
        where=where,
        expected=f"format {FORMAT!r}, schema {SCHEMA}",
        found=f"format {shown(found.get('format'))}, schema {shown(found.get('schema'))}",
        fix="build it again from the recording",
    )
