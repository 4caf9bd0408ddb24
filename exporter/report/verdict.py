"""The sentence at the top: does this bundle decide as PyTorch did, here, and did int8 stay within its budget?"""

from __future__ import annotations

from collections.abc import Iterator

from trunkline.calibration.int8.outcome import CalibrationRecord, promised
from trunkline.exporter.report.content import Verdict
from trunkline.exporter.report.words import few_digits
from trunkline.runtime.errors import ParityError
from trunkline.runtime.parity import ParityReport, require_parity


def judge(parity: ParityReport, backend: str, calibration: CalibrationRecord | None) -> Verdict:
    """The verdict on a bundle; ``passed`` asks for both gates."""
    met = calibration is None or (calibration.budget.met(calibration.fused) and calibration.proof.met)
    details = (*_parity_details(parity), *_budget_details(calibration))
    return Verdict(parity.passed and met, _sentence(parity.passed, backend, calibration, met), details)


def _sentence(passed: bool, backend: str, calibration: CalibrationRecord | None, met: bool) -> str:
    decides = "decides as the PyTorch ensemble did" if passed else "does not decide as the PyTorch ensemble did"
    sentence = f"{'Yes' if passed and met else 'No'}: on this machine, with {backend}, the bundle {decides}"
    if calibration is None:
        return f"{sentence}."
    link = ", and" if passed == met else ", but"
    return f"{sentence}{link} its int8 layers {'stayed within' if met else 'exceeded'} their budget."


def _parity_details(parity: ParityReport) -> Iterator[str]:
    fused = parity.fused
    same = fused.decisions - fused.winners_changed - fused.winners_close
    close = f"; {fused.winners_close} more were too close to call" if fused.winners_close else ""
    yield (
        f"Golden vectors, run just now: the same winner in {same} of {fused.decisions} decisions{close}; "
        f"largest score change {few_digits(fused.max_score_change)}, allowed {parity.allowed_score_change:g}."
    )
    try:
        require_parity(parity, "the bundle")
    except ParityError as error:
        yield from (f"Found: {each}." for each in error.found or ())  # type: ignore[attr-defined]


def _budget_details(calibration: CalibrationRecord | None) -> Iterator[str]:
    if calibration is None:
        yield "The bundle holds no calibration record, so there is no part on int8 in this report."
        return
    yield from (f"Int8: {line}." for line in promised(calibration.proof, calibration.budget))
