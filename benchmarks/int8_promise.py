"""Does an int8 export keep what it promises of decisions that nobody has judged?

    python benchmarks/int8_promise.py [--seeds 20] [--write docs/benchmarks.md]

For every seed the demo's world gives samples for an export and 1,000 fresh decisions of other episodes. A mix of int8
and float is chosen by the judging decisions alone, and then with the proof; both are held against the fresh decisions,
whose truth is the float32 bundle (it scores as PyTorch within 1e-6). Once with the demo's trained heads, and once with
random ones on a trunk with large normalisation channels. A promise is broken if fresh decisions keep less than it says.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.full_scale import log, machine, write_into
from tests.kit import random_checkpoint
from tests.outliers import DEMO, demo_bundle, demo_data, demo_trunk
from trunkline.calibration.int8.compress import CompressOptions, make_plans
from trunkline.calibration.int8.judge import Judge
from trunkline.calibration.int8.outcome import Proof
from trunkline.calibration.int8.proof import CONFIDENCE, prove
from trunkline.calibration.int8.proven_mix import aims, proven_mix
from trunkline.calibration.int8.rules import CPU
from trunkline.calibration.int8.search import Assignment, Search, Trials
from trunkline.calibration.int8.stage_inputs import StageInputs
from trunkline.calibration.samples.bundle_needs import BundleNeeds
from trunkline.calibration.samples.draw import DrawOptions, draw_samples
from trunkline.calibration.samples.sources import open_samples
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.export import build
from trunkline.runtime import Ensemble, load
from trunkline.runtime.backends.threads import physical_cores
from trunkline.runtime.errors import ParityError

FRESH = 1000
#: Samples of an export: 128 give ranges, 128 judge, 1,145 prove.
SAMPLES = 1450
BLOCKS = tuple(range(9))


@dataclass(frozen=True)
class Mix:
    """A mix of layers: how many are int8, what proved it, and what it does to fresh decisions."""

    layers: int
    seen: Proof | None
    fresh: Proof


@dataclass(frozen=True)
class Row:
    seed: int
    layers: int
    judged: float
    chosen: Mix
    proven: Mix | None


def random_bundle(folder: Path) -> Path:
    """Random heads on the demo's trunk with outlier channels in every block."""
    member = sorted((DEMO / "members").glob("*.safetensors"))[0]
    shape = read_checkpoint(member).members[0].shape
    build(random_checkpoint(3, shape), demo_trunk(BLOCKS), folder)
    return folder


def one(ensemble: Ensemble, work: Path, seed: int) -> Row:
    options, needs = CompressOptions(), BundleNeeds.of(ensemble.bundle)
    data = {"export": (SAMPLES, 1000 + seed), "fresh": (FRESH, 5000 + seed)}
    for name, (count, world) in data.items():
        demo_data(work / name, count, world)
    drawn = draw_samples(open_samples(work / "export/dataset.json"), needs, DrawOptions(seed=seed))
    opened = open_samples(work / "fresh/dataset.json")
    fresh = [opened[index] for index in range(FRESH)]
    plans = make_plans(ensemble, drawn.calibrating, options, work / "plans")
    with StageInputs(ensemble, drawn.judging) as inputs:  # the golden vectors of a float32 bundle are made up: left out
        trials = Trials(plans, Judge(ensemble, inputs.whole()), work / "trials")

    def proved(mix: Assignment) -> Proof:
        return prove(ensemble, trials.replaced(mix), drawn.proving, options.budget)

    def mixed(mix: Assignment, seen: Proof | None) -> Mix:
        found = prove(ensemble, trials.replaced(mix), fresh, options.budget)
        return Mix(sum(list(each.values()).count("int8") for each in mix.values()), seen, found)

    search = Search(plans, trials, CPU)
    first = search.run(next(aims(options.budget, [])))
    chosen = mixed(first.assignment, None)
    try:
        found, proof = proven_mix(search, options.budget, proved, "")
        proven = replace(chosen, seen=proof) if found.assignment == first.assignment else mixed(found.assignment, proof)
    except ParityError as error:
        log(f"seed {seed}: {error.problem}; {error.found}")
        proven = None
    layers = sum(len(plan.layers) for plan in plans.values())
    return Row(seed, layers, first.verdict.fused.winner_agreement, chosen, proven)


def row(bundle: Path, seed: int) -> Row:
    with tempfile.TemporaryDirectory() as work, load(bundle, backend="onnxruntime", threads=1) as ensemble:
        found = one(ensemble, Path(work), seed)
    log(line(found))
    return found


def rows(bundle: Path, seeds: int) -> list[Row]:
    """A seed for each core at a time."""
    with ProcessPoolExecutor(physical_cores(), get_context("spawn")) as pool:
        return list(pool.map(partial(row, bundle), range(1, seeds + 1)))


def line(found: Row) -> str:
    chosen, proven = found.chosen, found.proven
    cells = [found.seed, f"{found.judged:.1%}", *kept(chosen.fresh), chosen.layers]
    if proven is None or proven.seen is None:
        return table_line([*cells, "refused", *[""] * 6])
    seen = proven.seen
    promised = [seen.damage.winners_kept, f"{seen.winners:.1%}", f"{seen.scores:.1%}"]
    return table_line([*cells, *promised, *kept(proven.fresh), proven.layers, broken(proven) or "no"])


def kept(fresh: Proof) -> list[str]:
    total = fresh.damage.decisions
    return [f"{fresh.damage.winners_kept / total:.1%}", f"{fresh.scores_within / total:.1%}"]


def broken(mix: Mix) -> str:
    """Which promises the fresh decisions break."""
    if mix.seen is None:
        return ""
    total = mix.fresh.damage.decisions
    shares = {
        "winners": (mix.fresh.damage.winners_kept / total, mix.seen.winners),
        "scores": (mix.fresh.scores_within / total, mix.seen.scores),
    }
    return ", ".join(name for name, (share, promise) in shares.items() if share < promise)


def table_line(cells: list[object]) -> str:
    return f"| {' | '.join(str(each) for each in cells)} |"


def table(title: str, found: list[Row]) -> str:
    head = ["seed", "judges kept", "fresh winners", "fresh scores", "int8 layers"]
    head += ["proving kept", "winners promised", "scores promised", *head[2:], "broken"]
    asked = CompressOptions().budget.min_agreement
    missed = sum(each.chosen.fresh.damage.winner_agreement < asked for each in found)
    made = [each.proven for each in found if each.proven is not None]
    summary = (
        f"{title}: {found[0].layers} layers. Of {len(found)} exports chosen by judging decisions alone, {missed} "
        f"keep fewer than {asked:.0%} of the fresh winners; {averages([each.chosen for each in found])}. With a proof "
        f"{len(made)} are made, and {sum(bool(broken(mix)) for mix in made)} of them break a promise "
        f"({1 - CONFIDENCE:.0%} may); {averages(made)}."
    )
    return "\n".join([summary, "", table_line(head), table_line(["---"] * len(head)), *map(line, found)])


def averages(mixes: Sequence[Mix]) -> str:
    return f"{statistics.mean(mix.layers for mix in mixes):.1f} of the layers are int8" if mixes else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="with the demo's ensemble")
    parser.add_argument("--random-seeds", type=int, default=20, help="with random heads")
    parser.add_argument("--write", type=Path, help="page whose section is replaced")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demo = demo_bundle(Path(folder) / "demo", ())
        parts = [table("The demo's ensemble", rows(demo, arguments.seeds))]
        if arguments.random_seeds:
            bundle = random_bundle(Path(folder) / "random")
            title = "Random heads on a trunk with large normalisation channels"
            parts.append(table(title, rows(bundle, arguments.random_seeds)))
    text = "\n\n".join([f"`python benchmarks/int8_promise.py`, {machine()}", *parts])
    print(text)
    if arguments.write:
        write_into(arguments.write, text, "int8_promise")


if __name__ == "__main__":
    main()
