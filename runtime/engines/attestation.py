"""What was seen of an engine where it was built: what it is, and what it did in the run that judged it.

An :class:`Attestation` lies beside each engine. It is read strictly, and is no signature: who can write the cache can
forge it, which is why nobody else may.
"""

from __future__ import annotations

import datetime
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol, TypeVar

import numpy as np

from trunkline.runtime import record
from trunkline.runtime.engines.folder import RefusedError
from trunkline.runtime.engines.key import EngineKey
from trunkline.runtime.parity import ParityReport
from trunkline.runtime.record import shown

FORMAT, SCHEMA = "trunkline-engine", 1

_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ParityRun:
    """One run of a bundle's golden vectors.

    Attributes:
        bundle: digest of the bundle.
        passed: the gate's verdict.
        decisions: how many were compared with the PyTorch ensemble's.
        max_score_change: largest difference of a score.
        winners_changed: decisions with another winner although their margin was clear.
        allowed_score_change: the gate.
        tensor_differences: per stage, the largest difference of an output number from the reference back end's for the
            same inputs; empty where there was none. Not judged.
        reference: that back end, None where there was none.
    """

    bundle: str
    passed: bool
    decisions: int
    max_score_change: float
    winners_changed: int
    allowed_score_change: float
    tensor_differences: dict[str, float]
    reference: str | None

    @classmethod
    def of(
        cls, bundle: str, report: ParityReport, differences: Mapping[str, float], reference: str | None
    ) -> ParityRun:
        """A run as it is kept."""
        return cls(
            bundle=bundle,
            passed=report.passed,
            decisions=report.fused.decisions,
            max_score_change=report.fused.max_score_change,
            winners_changed=report.fused.winners_changed,
            allowed_score_change=report.allowed_score_change,
            tensor_differences=dict(differences),
            reference=reference,
        )

    def problems(self) -> Iterator[str]:
        """What cannot be, in words."""
        if not _DIGEST.fullmatch(self.bundle):
            yield "parity.bundle is not 64 lower-case hex digits"
        within = 0 <= self.max_score_change <= self.allowed_score_change and self.winners_changed == 0
        if self.passed and not (within and self.decisions > 0):
            yield "parity says that it passed, and its own numbers say that it did not"


@dataclass(frozen=True)
class Attestation:
    """An engine, and what is known of it.

    Attributes:
        format: ``FORMAT``.
        schema: ``SCHEMA``.
        key: what made the engine.
        plan_bytes: its size.
        plan_sha256: its content.
        build_seconds: how long the compiler took.
        built: when, in UTC, as the device's clock had it.
        target: name of the device profile.
        versions: of Trunkline, Python and numpy when it was built; the compiler's and the driver's are in the key.
        parity: the last run that judged it; None as long as none has.
    """

    format: str
    schema: int
    key: EngineKey
    plan_bytes: int
    plan_sha256: str
    build_seconds: float
    built: str
    target: str
    versions: dict[str, str]
    parity: ParityRun | None = None

    @property
    def passed(self) -> bool:
        """Whether the engine may be used."""
        return self.parity is not None and self.parity.passed

    def problems(self) -> Iterator[str]:
        """What cannot be, in words."""
        yield from form_problems(self, FORMAT, SCHEMA)
        yield from self.key.problems()
        if self.plan_bytes <= 0:
            yield f"plan_bytes is {shown(self.plan_bytes)}"
        if not _DIGEST.fullmatch(self.plan_sha256):
            yield "plan_sha256 is not 64 lower-case hex digits"
        if self.parity is not None:
            yield from self.parity.problems()


class Kept(Protocol):
    """A record that is kept in the cache."""

    @property
    def format(self) -> str: ...

    @property
    def schema(self) -> int: ...

    def problems(self) -> Iterator[str]:
        """What cannot be, in words."""


Kind = TypeVar("Kind", bound=Kept)


def form_problems(found: Kept, form: str, schema: int) -> Iterator[str]:
    """Whether a record is of another form than it should be."""
    if (found.format, found.schema) != (form, schema):
        yield f"it is {shown(found.format)}, schema {shown(found.schema)}, not {form}, schema {schema}"


def read(text: bytes, kind: type[Kind]) -> Kind:
    """A record from its file.

    Raises:
        RefusedError: it is malformed, or contradicts itself.
    """
    try:
        found = record.decode(text, kind)
    except record.RecordError as error:
        raise RefusedError(f"its record is malformed: {error}") from error
    if problems := list(found.problems()):
        raise RefusedError(f"its record contradicts itself: {'; '.join(problems)}")
    return found


def now() -> str:
    """The device's clock in UTC, for people; nothing depends on it, since clocks are set."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def versions_here() -> dict[str, str]:
    """What besides the compiler had a part in a build."""
    return {
        "trunkline": metadata.version("trunkline"),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
