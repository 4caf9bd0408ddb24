"""What a report says, as frozen records.

The page draws a :class:`Report` and ``--json`` prints it: both hold the same. Nothing in it depends on the time of day,
so that two reports of one bundle on one machine differ only where something was measured anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from trunkline.calibration.int8.outcome import CalibrationRecord
from trunkline.runtime.image import ImageSpec
from trunkline.runtime.manifest import ActionsEntry, MemberEntry, ParityEntry, SensorEntry, TextEntry, TrunkEntry
from trunkline.runtime.parity import Comparison, ParityReport
from trunkline.targets.latency import LatencyReport

FORMAT = "trunkline-report"
SCHEMA = 1


@dataclass(frozen=True)
class StageForm:
    """One variant of a stage, with the sizes of its files in bytes."""

    stage: str
    variant: str
    opset: int
    precision: str
    graph_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle is.

    Attributes:
        name: of its directory, without the path.
        digest: SHA-256 of its manifest.
        kind: what it judges.
        schema: of the bundle format.
        stages: every variant of every stage.
        other_bytes: sizes of the files that belong to no stage, by name.
        parity: the gate, and what was measured at export.
        producer: versions of the libraries that made it.
        sensor: of its fast sensor, None for a bundle without one.
    """

    name: str
    digest: str
    kind: str
    schema: int
    trunk: TrunkEntry
    members: tuple[MemberEntry, ...]
    actions: ActionsEntry
    image: ImageSpec
    text: TextEntry
    stages: tuple[StageForm, ...]
    other_bytes: dict[str, int]
    parity: ParityEntry
    producer: dict[str, str]
    sensor: SensorEntry | None = None

    @property
    def total_bytes(self) -> int:
        stages = sum(form.graph_bytes + form.weight_bytes for form in self.stages)
        return stages + sum(self.other_bytes.values())


@dataclass(frozen=True)
class StageDifference:
    """A stage's output in both bundles for the golden inputs, everything before it included.

    Attributes:
        stage: of both bundles.
        max_change: largest absolute difference of a number.
        signal_to_noise_db: of this bundle's output, the other's taken as exact; None if they are the same.
    """

    stage: str
    max_change: float
    signal_to_noise_db: float | None


@dataclass(frozen=True)
class Beside:
    """Another bundle, run on this bundle's golden inputs.

    Attributes:
        bundle: the other one.
        fused: this bundle's scores, held against the other's.
        members: the same for each member; empty if the members are not the same.
        stages: differences of the stages that both have in the same shape.
        latency: of the other, measured in the same way; None if it was not asked for.
        notes: what makes the two hard to compare.
    """

    bundle: BundleFacts
    fused: Comparison
    members: tuple[Comparison, ...]
    stages: tuple[StageDifference, ...]
    latency: LatencyReport | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The answer in one sentence, and the numbers it rests on."""

    passed: bool
    sentence: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The whole report.

    Attributes:
        machine: what this was measured on, in words.
        backend: name and version of the back end that ran the bundle.
        parity: golden vectors, run now.
        calibration: how int8 layers were chosen; None for a bundle without any.
        latency: None if it was not asked for.
        beside: None if no other bundle was named.
    """

    format: str
    schema: int
    verdict: Verdict
    bundle: BundleFacts
    machine: str
    backend: str
    parity: ParityReport
    calibration: CalibrationRecord | None
    latency: LatencyReport | None
    beside: Beside | None
