"""The ensemble a robot calls: image, instruction and candidates in, decision out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from trunkline.runtime import candidates, fusion
from trunkline.runtime.backends import Backend, Session, StageFiles, choose
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BackendError, ClosedError, InputError, SensorError
from trunkline.runtime.exact import is_plain
from trunkline.runtime.features import FrameFeatures, SensorFeatures
from trunkline.runtime.graph import CacheLimits, ContentNames, Source, StageCounts, StageGraph, on_host
from trunkline.runtime.image import to_pixels
from trunkline.runtime.instructions import InstructionSources, as_list, group_instructions
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.source import Sensed, SensorSources
from trunkline.runtime.sensor.steps import StepCounts
from trunkline.runtime.sensor.window import SensorWindow
from trunkline.runtime.stage_files import stage_files

Camera = NDArray[np.uint8] | Image.Image
Histories = Sequence[ArrayLike] | NDArray[np.generic]

#: How many different frames, and how many bytes of them, are recognised when they come again.
FRAMES = CacheLimits(entries=8, bytes=64 << 20)


@dataclass(frozen=True)
class Decision:
    """Scores of N candidates. With a list of I instructions every array gains a leading dimension I.

    Attributes:
        scores: (N,) float32, cosine in [-1, 1] of the fused vectors.
        best: index of the winning candidate; the first of equals.
        instruction: index of the instruction under which it won; 0 for a single one.
        member_scores: (K, N) float32, each member's own score (with I instructions (K, I, N)).
    """

    scores: NDArray[np.float32]
    best: int
    instruction: int
    member_scores: NDArray[np.float32]

    @property
    def disagreement(self) -> NDArray[np.float32]:
        """(N,) float32, standard deviation of the members' own scores; 0 for one member."""
        return fusion.disagreement(self.member_scores)


@dataclass(frozen=True)
class Selection:
    """The winner among groups of candidates.

    Attributes:
        best: index of the winning candidate in the list that was passed.
        group: its group, the one with the highest mean score.
        score: the winner's score.
        instruction: the winning group's instruction.
        group_scores: (G,) float32, mean score of each group.
        scores: (G, repeats) float32.
    """

    best: int
    group: int
    score: float
    instruction: str
    group_scores: NDArray[np.float32]
    scores: NDArray[np.float32]


class Ensemble:
    """K heads on one trunk, running from a bundle.

    Threads: any number may call :meth:`score` and :meth:`select` at once. A process that was forked after loading
    must load again. Use it as a context manager, or call :meth:`close`.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, limits: CacheLimits | None = None, *, threads: int | None = None
    ) -> None:
        """Prepares the stages of a bundle; they are compiled on first use or by :meth:`open_stages`."""
        self.bundle = bundle
        self.backend = backend
        self._threads = threads
        self._process = os.getpid()
        self._closed = False
        self._image, self._actions = bundle.manifest.image, bundle.manifest.actions
        self._instructions = InstructionSources(bundle)
        self._frames = ContentNames(FRAMES)
        self._graph = StageGraph(bundle.manifest.stages, self.open_stage, limits or CacheLimits())
        self._sensor = SensorSources(bundle, self._graph)

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members, in order."""
        return tuple(member.name for member in self.bundle.manifest.members)

    @property
    def sensor(self) -> SensorForm | None:
        """The stream of the fast sensor that members read, None for an ensemble without one."""
        entry = self.bundle.manifest.sensor
        return None if entry is None else entry.form

    @property
    def allowed_score_change(self) -> float:
        """The parity gate of the variant that runs here: by how much a score may differ from the PyTorch ensemble's."""
        return self.bundle.manifest.parity.gates[self.backend.VARIANT]

    def score(
        self,
        image: Camera | FrameFeatures,
        instruction: str | Sequence[str],
        histories: Histories,
        *,
        members: Sequence[int] | None = None,
        sensor: Sensed = None,
    ) -> Decision:
        """Scores candidates.

        Args:
            image: (height, width, 3) uint8 RGB array, or a PIL image, of any size; or what :meth:`encode_frame` gave.
            instruction: one instruction, or a list of I rephrasings.
            histories: (N, h, A) array or list of (h, A), h up to H; see :mod:`trunkline.runtime.candidates`.
            members: indices of the members to ask; all by default.
            sensor: a window of the fast sensor, or what :meth:`encode_sensor` gave. None says that there is none, which
                is an error for members that read one unless they were trained for its absence.

        Raises:
            ImageError: the image cannot be judged.
            InstructionError: an instruction cannot be encoded, or is not among the baked ones.
            CandidateError: naming every candidate that cannot be scored.
            SensorError: the window is not one that the members were trained on, or there is none.
            InputError: ``members`` is empty, repeated or out of range, or features are another bundle's.
            ClosedError: the ensemble is closed, or was loaded before a fork.
            BackendError: a stage failed.
        """
        single = isinstance(instruction, str)
        instructions = [cast(str, instruction)] if single else as_list(instruction)
        context, action = self.embed(image, instructions, histories, members=members, sensor=sensor)
        scores, by_member = fusion.fuse(context, action)  # (I, N), (K, I, N)
        values = scores.reshape(-1).tolist()
        winner, best = divmod(values.index(max(values)), scores.shape[1])
        if single:
            scores, by_member = scores[0], by_member[:, 0]
        return Decision(scores, best, winner, by_member)

    def select(
        self,
        image: Camera | FrameFeatures,
        instructions: str | Sequence[str],
        histories: Histories,
        repeats: int = 1,
        *,
        sensor: Sensed = None,
    ) -> Selection:
        """Chooses among groups of candidates: the group with the highest mean, then the best candidate in it.

        Candidates are ordered group by group, ``repeats`` to a group. One instruction judges all groups, as the
        newest published version does. With one instruction per group, each group is judged by its own; a list with
        one per candidate (the published calling form) is taken too if it is the same within each group.

        Raises:
            InputError: the number of candidates or instructions does not fit ``repeats``.
            TrunklineError: as :meth:`score`.
        """
        count = candidates.count(histories)
        if type(repeats) is not int or repeats < 1 or count % repeats:
            raise InputError(
                "candidates do not divide into groups",
                expected="a multiple of repeats, which is a whole number from 1",
                found=f"{count} candidates, repeats = {repeats}",
                fix="pass the same number of candidates for every rephrasing, group by group",
            )
        groups = count // repeats
        names = group_instructions(instructions, groups, repeats)
        context, action = self.embed(image, names, histories, sensor=sensor)
        fused, _ = fusion.fuse(context, action)  # (1 or G, A)
        by_group = fused.reshape(len(names), groups, repeats)
        scores = by_group[0] if len(names) == 1 else by_group[np.arange(groups), np.arange(groups)]
        means = scores.mean(axis=1)
        group = int(means.argmax())
        inside = int(scores[group].argmax())
        name = names[0] if len(names) == 1 else names[group]
        return Selection(group * repeats + inside, group, float(scores[group, inside]), name, means, scores)

    def embed(
        self,
        image: Camera | FrameFeatures,
        instructions: Sequence[str],
        histories: Histories,
        *,
        members: Sequence[int] | None = None,
        sensor: Sensed = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The members' unit vectors, before fusion: (K, I, E) and (K, N, E) float32.

        Raises:
            TrunklineError: as :meth:`score`.
        """
        self._require_open()
        chosen = self._chosen(members)
        sources = {
            **self._instructions.of(instructions),
            **self._image_source(image),
            **self._sensor.of(sensor, chosen),
        }
        windows = candidates.prepare(histories, self._actions)
        # The candidates of a call come and go together, so they are one part.
        sources["history"] = Source((windows.tobytes(),), lambda wanted: windows)
        context, action = self._graph.evaluate(("context", "action"), sources)
        return fusion.subset(context, chosen), fusion.subset(action, chosen)

    def encode_frame(self, image: Camera) -> FrameFeatures:
        """Runs the vision tower on a frame, for a later :meth:`score`.

        Raises:
            ImageError: the image cannot be judged.
            TrunklineError: as :meth:`score`.
        """
        self._require_open()
        sources = self._image_source(image)
        (patches,) = self._graph.evaluate_resident(("patches",), sources)
        return FrameFeatures(patches, self._graph.keys("patches", sources), self.bundle.digest)

    def encode_sensor(self, window: SensorWindow) -> SensorFeatures:
        """Runs the sensor encoders on a window, for a later :meth:`score`.

        Where a window has slid by a multiple of the encoder's stride since the last one of its stream, only what is new
        goes through the convolutions; :attr:`sensor_counts` tells how often.

        Raises:
            SensorError: the window is not one that the encoders were trained on, or the ensemble has no sensor.
            TrunklineError: as :meth:`score`.
        """
        self._require_open()
        if window is None:
            raise SensorError("there is no sensor window to encode", fix="pass sensor=None to score() instead")
        sources = self._sensor.of(window)
        (features,) = self._graph.evaluate_resident(("sensor",), sources)
        return SensorFeatures(features, self._graph.keys("sensor", sources), self.bundle.digest, window.end_ns)

    @property
    def sensor_counts(self) -> StepCounts:
        """How many sensor windows were computed in full, and how many from the window before."""
        return self._sensor.counts

    def pixels(self, image: Camera) -> NDArray[np.uint8]:
        """What the vision stage is given for an image: (height, width, 3) uint8.

        Raises:
            ImageError: the image cannot be judged.
        """
        return to_pixels(image, self._image)

    def token_ids(self, instructions: Sequence[str]) -> NDArray[np.int64] | None:
        """(I, L) ids of instructions, or None for a bundle with baked instructions.

        Raises:
            InstructionError: an instruction cannot be encoded.
        """
        return self._instructions.token_ids(instructions)

    def inputs(
        self,
        image: Camera,
        instructions: Sequence[str],
        histories: Histories,
        sensor: SensorWindow | None = None,
    ) -> dict[str, NDArray[np.generic]]:
        """What the first stages are fed for a call, by tensor name.

        ``pixels``, ``ids`` (or baked ``tokens``) and ``history``; with a sensor also ``samples`` of the whole window,
        or ``sensor``, what stands for its absence.

        Raises:
            TrunklineError: as :meth:`score`.
        """
        sources = self._instructions.of(instructions)
        fed = {name: on_host(source.load(range(len(source.keys)))) for name, source in sources.items()}
        windows = candidates.prepare(histories, self._actions)
        return {**fed, **self._sensor.inputs(sensor), "pixels": self.pixels(image)[None], "history": windows}

    def open_stage(self, name: str, files: StageFiles | None = None) -> Session:
        """A session of its own on a stage, or on another form of it; the caller closes it.

        Raises:
            BundleError: the stage's graph is refused.
            BackendError: the bundle holds no variant for this back end, or it refuses the stage.
        """
        self._require_open()
        if files is not None:
            return self.backend.open_stage(files)
        with stage_files(self.bundle, name, self.backend.VARIANT, threads=self._threads) as found:
            return self.backend.open_stage(found)

    def counts(self) -> dict[str, StageCounts]:
        """What each stage has done since loading."""
        return {name: node.counts for name, node in self._graph.nodes.items()}

    def forget(self) -> None:
        """Empties all caches; the next call computes everything."""
        self._graph.clear()
        self._frames.clear()
        self._sensor.forget()

    def open_stages(self) -> None:
        """Compiles all stages now, side by side, so that no call has to wait for it.

        Raises:
            BackendError: the back end refuses a stage, or opened some that were never judged with the others.
        """
        self._require_open()
        with ThreadPoolExecutor(max_workers=len(self._graph.nodes)) as pool:
            sessions = list(pool.map(self._graph.open, self._graph.nodes.values()))
        if len({getattr(session, "judged_with", None) for session in sessions}) > 1:
            self._graph.close()
            raise BackendError(
                "engines were replaced while the bundle was loaded",
                where=self.bundle.root,
                found="stages of two builds, which were never judged together",
                fix="load it again",
            )

    def close(self) -> None:
        """Frees sessions and caches. Calling it twice is fine."""
        closed, self._closed = self._closed, True  # first of all, so that no other thread opens a stage again
        if not closed and os.getpid() == self._process:
            self._graph.close()
            self._frames.clear()
            self._sensor.forget()

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the ensemble is closed", fix="load the bundle again")
        if os.getpid() != self._process:
            raise ClosedError(
                "the ensemble was loaded before this process was forked, and back ends do not survive a fork",
                fix="load the bundle in the process that uses it",
            )

    def _chosen(self, members: Sequence[int] | None) -> list[int] | None:
        if members is None:
            return None
        chosen = list(members) if isinstance(members, Iterable) else [members]
        count = len(self.members)
        valid = isinstance(members, Iterable) and all(
            isinstance(index, int | np.integer) and not isinstance(index, bool) and 0 <= index < count
            for index in chosen
        )
        if not chosen or not valid or len(set(chosen)) != len(chosen):
            raise InputError(
                "these members cannot be asked",
                expected=f"distinct indices from 0 to {count - 1}: " + ", ".join(self.members),
                found=chosen,
            )
        return chosen

    def _image_source(self, image: Camera | FrameFeatures) -> dict[str, Source]:
        """An array is known by its raw bytes, so that a known frame is not even resized again."""
        if isinstance(image, FrameFeatures):
            return {"patches": image.source(self.bundle.digest)}
        if is_plain(image) and image.dtype == np.uint8 and image.ndim == 3:
            raw = image.tobytes()  # a copy: a camera driver may write the next frame before this one is looked at
            name = self._frames.name(raw, image.shape)
            frame = np.frombuffer(raw, np.uint8).reshape(image.shape)
            return {"pixels": Source((name,), lambda wanted: to_pixels(frame, self._image)[None])}
        pixels = to_pixels(image, self._image)
        return {"pixels": Source((self._frames.name(pixels.tobytes(), "pixels"),), lambda wanted: pixels[None])}


def load(
    path: Path | str,
    *,
    backend: str | None = None,
    threads: int | None = None,
    cache: CacheLimits | None = None,
    recheck: bool = False,
    progress: Progress = silent,
) -> Ensemble:
    """Opens a bundle, checks it, and compiles its stages.

    Args:
        path: the directory that ``trunkline export`` wrote.
        backend: name of a back end; by default the fastest that is installed and runs a variant that the bundle holds.
        threads: cores to use; by default all physical ones this process may use.
        cache: bounds of each stage's cache.
        recheck: hash every file, also those unchanged since they were last hashed here.
        progress: told about hashing.

    Raises:
        BundleError: the bundle is malformed.
        IntegrityError: it is not what its manifest says.
        BackendError: no back end is installed, the bundle holds no variant that it runs, or it refuses a stage.
    """
    if backend is not None:
        choose(backend)  # hashing gigabytes first would only delay the answer
    bundle = Bundle(path, recheck=recheck, progress=progress)
    ensemble = Ensemble(bundle, choose(backend, bundle.manifest.variants), cache, threads=threads)
    try:
        ensemble.open_stages()
    except BaseException:
        ensemble.close()
        raise
    return ensemble
