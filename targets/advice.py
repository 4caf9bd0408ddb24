"""What to do where a bundle does not fit: changes, each with the bytes it saves, the one that saves most first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from trunkline.targets.estimate.stage import StageFacts, as_int8, with_members, with_usual_rows
from trunkline.targets.memory import Case, estimate
from trunkline.targets.profile import VARIANTS

#: Changes that save less than this part of the whole are not worth a word.
WORTH = 0.01


@dataclass(frozen=True)
class Advice:
    """One change.

    Attributes:
        name: in a word or two.
        what: to do, and what it costs.
        saves_bytes: at the peak.
        peak_bytes: what is needed then.
        fits: whether that alone suffices.
    """

    name: str
    what: str
    saves_bytes: int
    peak_bytes: int
    fits: bool


@dataclass(frozen=True)
class _Change:
    name: str
    what: str
    apply: Callable[[Case], Case]


def advise(case: Case, free_bytes: int) -> tuple[tuple[Advice, ...], tuple[str, ...]]:
    """Advice for a case, and the names of the first few changes that make it fit together.

    Nobody needs a second thing to do where there is a first that suffices: the names are empty if one change does, or
    if all together do not.
    """
    peak = estimate(case).peak_bytes
    changes = {change.name: change for change in _changes(case, free_bytes)}
    found = []
    for change in changes.values():
        after = estimate(change.apply(case)).peak_bytes
        if peak - after >= WORTH * peak:
            found.append(Advice(change.name, change.what, peak - after, after, after <= free_bytes))
    found.sort(key=lambda each: -each.saves_bytes)
    if any(each.fits for each in found):
        return tuple(found), ()
    return tuple(found), _together(case, [changes[each.name] for each in found], free_bytes)


def _together(case: Case, changes: list[_Change], free_bytes: int) -> tuple[str, ...]:
    for count, change in enumerate(changes, 1):
        case = change.apply(case)
        if estimate(case).peak_bytes <= free_bytes:
            return tuple(each.name for each in changes[:count])
    return ()


def _changes(case: Case, free_bytes: int) -> Iterator[_Change]:
    """Changes that can be made to this bundle for this device."""
    if any(each.name == "text" for each in case.stages):
        yield _Change(
            "bake",
            "store the instructions in place of the text tower: `trunkline export --bake FILE`; any other instruction "
            "is an error then",
            _without_text,
        )
    if all(map(_is_float, case.stages)):
        words = "--precision int8" + (" --half-int8" if VARIANTS[case.backend] == "trt" else "")
        yield _Change(
            "int8",
            f"linear layers in int8: `trunkline export {words} --calibrate DATA`; the gate judges decisions",
            _in_int8,
        )
    if len(case.manifest.members) > 1:
        yield _fewer_members(case, free_bytes)
    usual = ", ".join(f"{each.letter} {each.optimum}" for each in case.profile.rows if each.optimum < each.maximum)
    if usual:
        yield _Change(
            "fewer rows",
            f"no more rows in a call than usual ({usual}): as maximum in a profile of your own, which "
            f"`trunkline targets {case.profile.name}` prints for a start",
            _with_usual_rows,
        )
    for name in case.profile.backends:
        if name != case.backend and VARIANTS[name] == VARIANTS[case.backend]:
            yield _Change(name, f"run it on another back end: --backend {name}", _on(name))


def _is_float(facts: StageFacts) -> bool:
    """Where some stages are int8 already, a search has left the others as they are for a reason."""
    return facts.precision in ("float32", "float16")


def _without_text(case: Case) -> Case:
    return replace(case, stages=tuple(each for each in case.stages if each.name != "text"))


def _in_int8(case: Case) -> Case:
    return replace(case, stages=tuple(map(as_int8, case.stages)))


def _with_usual_rows(case: Case) -> Case:
    rows = tuple(replace(each, maximum=each.optimum) for each in case.profile.rows)
    profile = replace(case.profile, rows=rows)
    return replace(case, profile=profile, stages=tuple(map(with_usual_rows, case.stages)))


def _on(backend: str) -> Callable[[Case], Case]:
    return lambda case: replace(case, backend=backend)


def _fewer_members(case: Case, free_bytes: int) -> _Change:
    """As many members as fit, and one if none do."""
    count = len(case.manifest.members)
    fitting = (kept for kept in range(count - 1, 1, -1) if estimate(_members(kept)(case)).peak_bytes <= free_bytes)
    kept = next(fitting, 1)
    return _Change(
        "fewer members",
        f"keep {kept} of {count} members: `trunkline pack` with fewer checkpoints; the ensemble is another one then, "
        "and must be evaluated again",
        _members(kept),
    )


def _members(kept: int) -> Callable[[Case], Case]:
    def apply(case: Case) -> Case:
        return replace(case, stages=tuple(with_members(each, kept) for each in case.stages))

    return apply
