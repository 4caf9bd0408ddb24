"""Does this bundle, on this machine, still decide as the PyTorch ensemble did?

The exporter stores golden inputs and the PyTorch ensemble's outputs in the bundle. Here they are run again. Pixels,
what mean and std make of them, and token ids must be identical; scores are judged by the largest change and by who
wins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.errors import BundleError, ImageError, ParityError
from trunkline.runtime.image import decode_png, normalised
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.sensor.window import SensorWindow

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """Two sets of decisions held against each other.

    Attributes:
        decisions: how many rankings of candidates were compared.
        max_score_change: largest absolute difference of a score.
        winners_changed: decisions with another winner although the reference's margin exceeded the allowed one.
        winners_close: decisions with another winner whose margin was smaller.
        rank_correlation: lowest Spearman correlation of a decision's scores; 1 is the same ranking.
    """

    decisions: int
    max_score_change: float
    winners_changed: int
    winners_close: int
    rank_correlation: float


@dataclass(frozen=True)
class ParityReport:
    """Golden vectors against this machine. ``passed`` is the gate.

    ``pixels_changed`` and ``normalised_changed`` count frames: those of other pixels, and those of the same pixels that
    the bundle's mean and std turn into other numbers than the trunk's own preprocessing did.
    """

    fused: Comparison
    members: tuple[Comparison, ...]
    frames: int
    pixels_changed: int
    normalised_changed: int
    ids_changed: int
    allowed_score_change: float
    margin: float
    passed: bool

    def problems(self) -> list[str]:
        """What differs more than the gate allows, in words."""
        found = []
        if self.fused.max_score_change > self.allowed_score_change:
            found.append(f"a score changed by {self.fused.max_score_change:.3g}")
        if self.fused.winners_changed:
            found.append(f"{self.fused.winners_changed} of {self.fused.decisions} decisions have another winner")
        if self.pixels_changed:
            frames = f"{self.pixels_changed} of {self.frames} frames"
            found.append(f"preprocessing of {frames} differs: other pixels (Pillow version, resize mode or filter?)")
        if self.normalised_changed:
            frames = f"{self.normalised_changed} of {self.frames} frames"
            found.append(f"preprocessing of {frames} differs: mean or std in the manifest is not the trunk's own")
        if self.ids_changed:
            found.append(f"token ids of {self.ids_changed} instructions differ (tokenizers or ftfy version?)")
        return found


def clear_margin(allowed_score_change: float) -> float:
    """By how much a winner must lead so that it cannot lose where scores move as far as they may."""
    return 2 * allowed_score_change


def compare(expected: Scores, found: Scores, margin: float) -> Comparison:
    """Compares scores (..., N) over their last dimension."""
    expected, found = expected.reshape(-1, expected.shape[-1]), found.reshape(-1, found.shape[-1])
    other = expected.argmax(1) != found.argmax(1)
    best_two = np.sort(expected, axis=1)[:, -2:]
    clear = best_two[:, -1] - best_two[:, 0] > margin if expected.shape[1] > 1 else np.zeros(len(expected), bool)
    correlations = [spearman(one, two) for one, two in zip(expected, found, strict=True)]
    return Comparison(
        decisions=len(expected),
        max_score_change=float(np.abs(expected - found).max()),
        winners_changed=int((other & clear).sum()),
        winners_close=int((other & ~clear).sum()),
        rank_correlation=float(min(correlations)),
    )


def spearman(reference: Scores, found: Scores) -> float:
    """Rank correlation of two decisions' scores (N,); 1 is the same ranking, also for a single candidate.

    Equal scores share the mean of their ranks. A reference whose scores are all equal has no ranking to lose: 1. One
    that has, against scores that are all equal: 0.
    """
    expected, ranks = _ranks(reference), _ranks(found)
    if np.ptp(expected) == 0:
        return 1.0
    return float(np.corrcoef(expected, ranks)[0, 1]) if np.ptp(ranks) else 0.0


def _ranks(scores: Scores) -> NDArray[np.float64]:
    """Ranks from 1; equal scores have the mean of theirs."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def regret(reference: Scores, found: Scores) -> float:
    """What ``reference`` scores its own winner above that of ``found``, of (N,) each; 0 for the same one or a tie."""
    return float(reference.max() - reference[found.argmax()])


def golden_name(kind: str, index: int) -> str:
    """Name of a golden tensor of one frame, such as ``frame_0``."""
    return f"{kind}_{index}"


def pixels_digest(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """(32,) uint8, SHA-256 of pixels, or of what mean and std made of them: equality is all that is asked of it."""
    return np.frombuffer(hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest(), np.uint8)


@dataclass(frozen=True, eq=False)
class GoldenCall:
    """A golden frame, the instructions it is scored under, its candidates (N, H, A), and what its sensor felt."""

    image: Image.Image
    instructions: tuple[str, ...]
    histories: Scores
    sensor: SensorWindow | None


def golden_calls(ensemble: Ensemble) -> list[GoldenCall]:
    """The golden inputs.

    Raises:
        BundleError: the golden vectors are malformed.
    """
    golden = _Golden(ensemble)
    return [golden.call(index) for index in range(golden.frames)]


def check_parity(ensemble: Ensemble, *, progress: Progress = silent) -> ParityReport:
    """Runs the golden vectors.

    Raises:
        BundleError: the golden vectors are malformed.
        TrunklineError: as :meth:`Ensemble.score`.
    """
    allowed = ensemble.allowed_score_change
    margin = clear_margin(allowed)
    golden, image = _Golden(ensemble), ensemble.bundle.manifest.image
    found, found_members, pixels_changed, normalised_changed = [], [], 0, 0
    for index in range(golden.frames):
        progress("golden vectors", index, golden.frames)
        call = golden.call(index)
        pixels = ensemble.pixels(call.image)
        if not np.array_equal(pixels_digest(pixels), golden.get("pixels", index)):
            pixels_changed += 1
        elif not np.array_equal(pixels_digest(normalised(pixels, image)), golden.get("normalised", index)):
            normalised_changed += 1
        decision = ensemble.score(call.image, call.instructions, call.histories, sensor=call.sensor)
        found.append(decision.scores)
        found_members.append(decision.member_scores)
    progress("golden vectors", golden.frames, golden.frames)
    scores, members_found = golden.agreeing(found), golden.agreeing(found_members)  # (F, I, N), (F, K, I, N)
    fused = compare(golden.stacked("scores", scores.shape), scores, margin)
    expected_members = golden.stacked("member_scores", members_found.shape)
    members = tuple(
        compare(expected_members[:, k], members_found[:, k], margin) for k in range(expected_members.shape[1])
    )
    ids_changed = _ids_changed(ensemble, ensemble.bundle.manifest.parity.instructions, golden)
    changed = (fused.winners_changed, pixels_changed, normalised_changed, ids_changed)
    passed = fused.max_score_change <= allowed and not any(changed)
    return ParityReport(fused, members, golden.frames, *changed[1:], allowed, margin, passed)


def require_parity(report: ParityReport, where: object) -> None:
    """Raises ParityError, listing what differs, unless the report passed."""
    if report.passed:
        return
    raise ParityError(
        "the bundle does not decide as the PyTorch ensemble did",
        where=where,
        expected=f"scores within {report.allowed_score_change:g}, the same winners, identical pixels and ids",
        found=report.problems(),
        fix="do not run it on a robot; install the versions that the manifest's producer names, or export again",
    )


class _Golden:
    """The bundle's golden vectors, checked on access."""

    def __init__(self, ensemble: Ensemble) -> None:
        manifest = ensemble.bundle.manifest
        self._instructions = manifest.parity.instructions
        self._form = manifest.sensor.form if manifest.sensor else None
        self._where = f"{ensemble.bundle.root}, {manifest.parity.golden}"
        self._tensors = ensemble.bundle.tensors(manifest.parity.golden)
        self.frames = sum(name.startswith("frame_") for name in self._tensors)
        if not self.frames or not manifest.parity.instructions:
            raise BundleError("the bundle holds no golden vectors", where=self._where, fix="export it again")

    def get(self, kind: str, index: int) -> NDArray[np.generic]:
        tensor = self._tensors.get(golden_name(kind, index))
        if not isinstance(tensor, np.ndarray):
            raise self._malformed("all tensors of every frame", f"no {kind} of frame {index}")
        return tensor

    def call(self, index: int) -> GoldenCall:
        """One frame with everything; candidates and samples that cannot be scored are refused when they are."""
        histories = cast(Scores, self.get("histories", index))
        return GoldenCall(self._frame(index), self._instructions, histories, self._sensor(index))

    def _frame(self, index: int) -> Image.Image:
        """A golden frame; it is kept as PNG, which loses nothing."""
        content = self.get("frame", index)
        if content.dtype != np.uint8 or content.ndim != 1:
            raise self._malformed("frames as PNG files", f"frame {index}: {content.dtype} {content.shape}")
        try:
            return decode_png(content.tobytes(), f"{self._where}, frame {index}")
        except ImageError as error:
            raise self._malformed("frames as PNG files", f"frame {index}: {error.problem}") from error

    def _sensor(self, index: int) -> SensorWindow | None:
        samples = self._tensors.get(golden_name("sensor", index))
        if self._form is None or samples is None:
            return None
        return SensorWindow(cast(Scores, samples), self._form.rate_hz)

    def agreeing(self, scores: list[Scores]) -> Scores:
        """Scores of all frames as one array."""
        if len({each.shape for each in scores}) > 1:
            raise self._malformed(
                "the same number of candidates in every frame", ", ".join(str(s.shape) for s in scores)
            )
        return np.stack(scores)

    def stacked(self, kind: str, shape: tuple[int, ...]) -> Scores:
        """Scores of all frames, in the shape of those they are compared with: numpy would broadcast others."""
        tensors = [self.get(kind, index) for index in range(self.frames)]
        for index, tensor in enumerate(tensors):
            if tensor.dtype != np.float32 or tensor.shape != shape[1:] or not np.isfinite(tensor).all():
                found = f"{kind} of frame {index}: {tensor.dtype} {tensor.shape}"
                raise self._malformed(f"finite float32 {shape[1:]}", found)
        return np.stack(tensors).astype(np.float32)

    def _malformed(self, expected: str, found: str) -> BundleError:
        return BundleError(
            "golden vectors are malformed",
            where=self._where,
            expected=expected,
            found=found,
            fix="export the bundle again",
        )


def _ids_changed(ensemble: Ensemble, instructions: Sequence[str], golden: _Golden) -> int:
    ids = ensemble.token_ids(instructions)
    if ids is None:
        return 0
    expected = golden.get("ids", 0)
    return int((ids != expected).any(axis=1).sum()) if ids.shape == expected.shape else len(instructions)
