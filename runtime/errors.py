"""Every error Trunkline raises on purpose, in one tree.

::

    TrunklineError                 exit code 1: the user can fix it
    |-- InputError                 what was handed to a call is not usable
    |   |-- ImageError
    |   |-- InstructionError
    |   |-- CandidateError
    |   `-- SensorError
    |-- CheckpointError            a training checkpoint cannot be read, or its members do not belong together
    |-- DatasetError               an evaluation or calibration data set cannot be used
    |-- ReplayError                a replay log cannot be written, read or used
    |-- TrunkError                 the frozen encoder cannot be built, cut or described as data
    |-- ExportError                a stage cannot be traced, or a bundle cannot be written
    |-- BackendError               a back end is missing, or failed while it ran a stage
    |-- ClosedError                the ensemble was used after ``close``
    |-- BundleError                exit code 4: a bundle is malformed
    |   `-- IntegrityError         exit code 4: a bundle is not what its manifest says (digest, size, link, path)
    `-- ParityError                exit code 3: scores differ from the PyTorch ensemble's by more than the gate allows

A message has up to five parts: what was attempted, where, what was expected, what was found, how to fix it.
Errors of libraries are mapped to this tree with ``raise ... from``. Anything else that escapes is a bug in
Trunkline and not the user's fault.
"""

from __future__ import annotations

from collections.abc import Sequence


class TrunklineError(Exception):
    """Base of the tree.

    Args:
        problem: what was attempted and went wrong, one sentence without a full stop.
        where: the file, member, stage or candidate it concerns.
        expected: what would have been right.
        found: what was there instead; a sequence is listed line by line, so that all differences are shown.
        fix: what the user can do.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ) -> None:
        self.problem = problem
        self.where = where
        self.expected = expected
        self.found = found
        self.fix = fix
        parts = [("where", where), ("expected", expected), ("found", found), ("fix", fix)]
        lines = [problem] + [f"  {label}: {_listed(value)}" for label, value in parts if value is not None]
        super().__init__("\n".join(lines))


def _listed(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return str(value[0]) if len(value) == 1 else "".join(f"\n    - {item}" for item in value)
    return str(value)


class InputError(TrunklineError):
    """What was handed to a call is not usable."""


class ImageError(InputError):
    """An image is not one that the ensemble can judge."""


class InstructionError(InputError):
    """An instruction cannot be encoded."""


class CandidateError(InputError):
    """A candidate action history is not one that the ensemble can judge."""


class SensorError(InputError):
    """A sensor stream or window is not one that the ensemble can judge, or there is none where one is needed."""


class CheckpointError(TrunklineError):
    """A training checkpoint cannot be read, or its members do not belong together."""


class DatasetError(TrunklineError):
    """An evaluation or calibration data set cannot be used."""


class ReplayError(TrunklineError):
    """A replay log cannot be written, read or used."""


class TrunkError(TrunklineError):
    """The frozen encoder cannot be built, cut or described as data."""


class ExportError(TrunklineError):
    """A stage cannot be traced, or a bundle cannot be written."""


class BackendError(TrunklineError):
    """A back end is missing, or failed while it ran a stage."""


class ClosedError(TrunklineError):
    """The ensemble was used after ``close``."""


class BundleError(TrunklineError):
    """A bundle is malformed."""

    exit_code = 4


class IntegrityError(BundleError):
    """A bundle is not what its manifest says: digest, size, link or path."""


class ParityError(TrunklineError):
    """Scores differ from the PyTorch ensemble's by more than the gate allows."""

    exit_code = 3
