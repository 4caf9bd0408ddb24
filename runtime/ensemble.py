"""The ensemble a robot calls: image, instruction and candidates in, decision out."""

from __future__ import annotations

import contextlib
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

from trunkline.runtime import candidates, fusion, onnx_scan
from trunkline.runtime.backends import Backend, Session, StageFiles, choose
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BackendError, BundleError, ClosedError, InputError, InstructionError
from trunkline.runtime.graph import CacheLimits, ContentNames, Source, StageCounts, StageGraph
from trunkline.runtime.image import to_pixels
from trunkline.runtime.manifest import Variant
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.text import Tokenizer, clean

Camera = NDArray[np.uint8] | Image.Image
Histories = Sequence[ArrayLike] | NDArray[np.generic]

MAX_INSTRUCTIONS = 256
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
        self._image, self._actions, self._text = bundle.manifest.image, bundle.manifest.actions, bundle.manifest.text
        name = self._text.tokenizer
        self._tokenizer = Tokenizer(self._text.spec, bundle.read(name)) if name else None
        self._baked = _read_baked(bundle) if self._text.baked else {}
        self._frames = ContentNames(FRAMES)
        self._graph = StageGraph(bundle.manifest.stages, self.open_stage, limits or CacheLimits())

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members, in order."""
        return tuple(member.name for member in self.bundle.manifest.members)

    def score(
        self,
        image: Camera,
        instruction: str | Sequence[str],
        histories: Histories,
        *,
        members: Sequence[int] | None = None,
    ) -> Decision:
        """Scores candidates.

        Args:
            image: (height, width, 3) uint8 RGB array, or a PIL image, of any size.
            instruction: one instruction, or a list of I rephrasings.
            histories: (N, h, A) array or list of (h, A), h up to H; see :mod:`trunkline.runtime.candidates`.
            members: indices of the members to ask; all by default.

        Raises:
            ImageError: the image cannot be judged.
            InstructionError: an instruction cannot be encoded, or is not among the baked ones.
            CandidateError: naming every candidate that cannot be scored.
            InputError: ``members`` is empty, repeated or out of range.
            ClosedError: the ensemble is closed, or was loaded before a fork.
            BackendError: a stage failed.
        """
        single = isinstance(instruction, str)
        instructions = [cast(str, instruction)] if single else _as_list(instruction)
        context, action = self.embed(image, instructions, histories, members=members)
        scores, by_member = fusion.fuse(context, action)  # (I, N), (K, I, N)
        values = scores.reshape(-1).tolist()
        winner, best = divmod(values.index(max(values)), scores.shape[1])
        if single:
            scores, by_member = scores[0], by_member[:, 0]
        return Decision(scores, best, winner, by_member)

    def select(
        self, image: Camera, instructions: str | Sequence[str], histories: Histories, repeats: int = 1
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
        names = _group_instructions(instructions, groups, repeats)
        context, action = self.embed(image, names, histories)
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
        image: Camera,
        instructions: Sequence[str],
        histories: Histories,
        *,
        members: Sequence[int] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The members' unit vectors, before fusion: (K, I, E) and (K, N, E) float32.

        Raises:
            TrunklineError: as :meth:`score`.
        """
        self._require_open()
        chosen = self._chosen(members)
        sources = self._text_source(_as_list(instructions))
        sources["pixels"] = self._image_source(image)
        windows = candidates.prepare(histories, self._actions)
        # The candidates of a call come and go together, so they are one part.
        sources["history"] = Source((windows.tobytes(),), lambda wanted: windows)
        context, action = self._graph.evaluate(("context", "action"), sources)
        return fusion.subset(context, chosen), fusion.subset(action, chosen)

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
        return None if self._tokenizer is None else self._tokenizer(list(instructions))

    def inputs(
        self, image: Camera, instructions: Sequence[str], histories: Histories
    ) -> dict[str, NDArray[np.generic]]:
        """What the stages are fed for a call: ``pixels``, ``ids`` (or baked ``tokens``) and ``history``, by name.

        Raises:
            TrunklineError: as :meth:`score`.
        """
        sources = self._text_source(_as_list(instructions))
        fed = {name: source.load(range(len(source.keys))) for name, source in sources.items()}
        return {**fed, "pixels": self.pixels(image)[None], "history": candidates.prepare(histories, self._actions)}

    def open_stage(self, name: str, files: StageFiles | None = None) -> Session:
        """A session of its own on a stage, or on another form of it; the caller closes it.

        Raises:
            BundleError: the stage's graph is refused.
            BackendError: the bundle holds no variant for this back end, or it refuses the stage.
        """
        self._require_open()
        if files is not None:
            return self.backend.open_stage(files)
        stage, root = self.bundle.manifest.stages[name], self.bundle.root
        variant = stage.variants.get(self.backend.VARIANT)
        if variant is None:
            raise BackendError(
                "the bundle holds no variant that this back end runs",
                where=f"{root}, stage {name}",
                expected=self.backend.VARIANT,
                found=", ".join(stage.variants),
                fix="export the bundle for this target",
            )
        graph = self._checked_graph(name, variant)
        folder = (root / variant.graph).parent.resolve()
        # The weights are opened by path: nobody may swap them meanwhile.
        with self.bundle.unchanged(variant.weights) if variant.weights else contextlib.nullcontext():
            return self.backend.open_stage(StageFiles(name, stage, graph, folder, self._threads))

    def counts(self) -> dict[str, StageCounts]:
        """What each stage has done since loading."""
        return {name: node.counts for name, node in self._graph.nodes.items()}

    def forget(self) -> None:
        """Empties all caches; the next call computes everything."""
        self._graph.clear()
        self._frames.clear()

    def open_stages(self) -> None:
        """Compiles all stages now, side by side, so that no call has to wait for it."""
        self._require_open()
        with ThreadPoolExecutor(max_workers=len(self._graph.nodes)) as pool:
            list(pool.map(self._graph.open, self._graph.nodes.values()))

    def close(self) -> None:
        """Frees sessions and caches. Calling it twice is fine."""
        closed, self._closed = self._closed, True  # first of all, so that no other thread opens a stage again
        if not closed and os.getpid() == self._process:
            self._graph.close()
            self._frames.clear()

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

    def _image_source(self, image: Camera) -> Source:
        """An array is known by its raw bytes, so that a known frame is not even resized again."""
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3:
            raw = image.tobytes()  # a copy: a camera driver may write the next frame before this one is looked at
            name = self._frames.name(raw, image.shape)
            frame = np.frombuffer(raw, np.uint8).reshape(image.shape)
            return Source((name,), lambda wanted: to_pixels(frame, self._image)[None])
        pixels = to_pixels(image, self._image)
        return Source((self._frames.name(pixels.tobytes(), "pixels"),), lambda wanted: pixels[None])

    def _text_source(self, instructions: Sequence[str]) -> dict[str, Source]:
        if not 0 < len(instructions) <= MAX_INSTRUCTIONS:
            raise InstructionError(
                "there must be an instruction, and not too many",
                expected=f"1 to {MAX_INSTRUCTIONS}",
                found=len(instructions),
            )
        if self._tokenizer is not None:
            tokenizer = self._tokenizer
            return {
                "ids": Source(tuple(instructions), lambda wanted: tokenizer([instructions[index] for index in wanted]))
            }
        names = [self._baked_name(text) for text in instructions]
        return {"tokens": Source(tuple(names), lambda wanted: np.stack([self._baked[names[i]] for i in wanted]))}

    def _baked_name(self, instruction: str) -> str:
        name = clean(instruction, self._text.spec.clean)
        if name not in self._baked:
            raise InstructionError(
                "the bundle was exported for a fixed list of instructions, and this is not one of them",
                expected=[*self._text.instructions[:10], *(["..."] if len(self._text.instructions) > 10 else [])],
                found=repr(instruction),
                fix="export again with the instruction in the --bake file, or without --bake",
            )
        return name

    def _checked_graph(self, name: str, variant: Variant) -> bytes:
        where = f"{self.bundle.root}, {variant.graph}"
        graph = self.bundle.read(variant.graph, onnx_scan.MAX_GRAPH_BYTES)
        weights = variant.weights
        if weights and Path(weights).parent != Path(variant.graph).parent:
            raise BundleError("a stage's weight file must lie beside its graph", where=where, found=weights)
        onnx_scan.scan(
            graph,
            opset=variant.opset,
            weights=Path(weights).name if weights else None,
            weights_bytes=self.bundle.manifest.files[weights].size if weights else 0,
            where=where,
        )
        return graph


def _as_list(instructions: Sequence[str]) -> list[str]:
    if isinstance(instructions, str | bytes) or not isinstance(instructions, Iterable):
        raise InstructionError("there must be a list of instructions", found=type(instructions).__name__)
    names = list(instructions)
    wrong = [f"{index}: {type(text).__name__}" for index, text in enumerate(names) if type(text) is not str]
    if wrong:
        raise InstructionError("an instruction must be a string", found=wrong[:20])
    return names


def _group_instructions(instructions: str | Sequence[str], groups: int, repeats: int) -> list[str]:
    """One instruction for all groups, or one per group."""
    names = [instructions] if isinstance(instructions, str) else _as_list(instructions)
    if len(names) == groups * repeats and len(names) != groups:
        per_group = [names[group * repeats : (group + 1) * repeats] for group in range(groups)]
        mixed = [str(group) for group, each in enumerate(per_group) if len(set(each)) > 1]
        if mixed:
            raise InputError("candidates of one group have different instructions", found="groups " + ", ".join(mixed))
        names = [each[0] for each in per_group]
    if len(set(names)) == 1:
        return names[:1]
    if len(names) != groups:
        raise InputError(
            "instructions do not fit the groups",
            expected=f"1 instruction, {groups} (one per group) or {groups * repeats} (one per candidate)",
            found=len(names),
        )
    return names


def _read_baked(bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    """Tokens (L, D) by cleaned instruction."""
    text, manifest = bundle.manifest.text, bundle.manifest
    where = f"{bundle.root}, {text.baked}"
    tokens = bundle.tensors(cast(str, text.baked)).get("tokens")
    expected = (len(text.instructions), text.spec.context_length, manifest.trunk.width)
    if not isinstance(tokens, np.ndarray) or tokens.shape != expected or tokens.dtype != np.float32:
        found = f"{tokens.dtype} {tokens.shape}" if isinstance(tokens, np.ndarray) else "no tokens"
        raise BundleError("baked instructions are malformed", where=where, expected=f"float32 {expected}", found=found)
    if not np.isfinite(tokens).all():
        raise BundleError("baked instructions are malformed", where=where, found="NaN or infinite values")
    try:
        names = [clean(each, text.spec.clean) for each in text.instructions]
    except InstructionError as error:
        raise BundleError("baked instructions are malformed", where=where, found=error.problem) from error
    if len(set(names)) != len(names):
        raise BundleError("baked instructions are not distinct once cleaned", where=where)
    return dict(zip(names, tokens, strict=True))


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
        backend: name of a back end; by default the fastest that is installed.
        threads: cores to use; by default all physical ones.
        cache: bounds of each stage's cache.
        recheck: hash every file, also those unchanged since they were last hashed here.
        progress: told about hashing.

    Raises:
        BundleError: the bundle is malformed.
        IntegrityError: it is not what its manifest says.
        BackendError: no back end is installed, or it refuses a stage.
    """
    chosen = choose(backend)
    ensemble = Ensemble(Bundle(path, recheck=recheck, progress=progress), chosen, cache, threads=threads)
    ensemble.open_stages()
    return ensemble
