"""The sections that only a calibrated bundle has: damage, sensitivity, precision map, search, samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from trunkline.calibration.int8.outcome import CalibrationRecord, Damage, LayerOutcome, SearchStep, promised
from trunkline.exporter.report.blocks import Block, Paragraph, Plots, Section, Steps, Table
from trunkline.exporter.report.int8_plots import noise_plots, score_plots, sensitivity_plots, trial_plot
from trunkline.exporter.report.precision_map import precision_maps, reason
from trunkline.exporter.report.words import amount, few_digits, percent, share
from trunkline.runtime.manifest import MemberEntry

DAMAGE = (
    "#decisions",
    "#largest score change",
    "#mean score change",
    "#same winner",
    "#most regret",
    "#rank correlation",
)
PRECISIONS = ("int8", "stored", "float32")


def int8_sections(calibration: CalibrationRecord, members: Sequence[MemberEntry]) -> Iterator[Section]:
    """In the order of a reader's questions: what did it cost, where, what was chosen, and how."""
    yield _damage(calibration, members)
    yield _sensitivity(calibration)
    yield _precision(calibration, members)
    if calibration.steps:
        yield _search(calibration)


def sample_section(calibration: CalibrationRecord) -> Section:
    """What calibration was fed with."""
    samples = calibration.samples
    rows = [
        ["source", samples.source],
        ["samples that gave the ranges", str(samples.calibrating)],
        ["decisions that layers were chosen by", str(samples.judging)],
        ["decisions that proved the choice", str(samples.proving)],
        ["images that could not be read", str(len(samples.skipped))],
    ]
    blocks: list[Block] = [Table("Samples", ("", ""), rows)]
    if samples.warnings:
        blocks.append(Table("What is thin about them", ("warning",), [[each] for each in samples.warnings]))
    if samples.skipped:
        skipped = [[each] for each in samples.skipped]
        blocks.append(Table("Images that could not be read", ("image",), skipped, folded=len(skipped) > 8))
    return Section("samples", "Samples", blocks)


def _damage(calibration: CalibrationRecord, members: Sequence[MemberEntry]) -> Section:
    budget = calibration.budget
    proof = calibration.proof
    parts = {
        "everything in int8": calibration.all_int8,
        "as shipped, fused": calibration.fused,
        "the same on decisions that proved it": proof.damage,
    }
    alone = zip((f"{member.name} alone" for member in members), calibration.members, strict=True)
    rows = [[name, *_damaged(each)] for name, each in (*parts.items(), *alone)]
    text = (
        f"Decisions on samples, int8 held against float32, judged with {calibration.backend} when the bundle was made. "
        f"The budget: the winner stays in at least {percent(budget.min_agreement)} of decisions, and in as many no "
        f"score moves by more than {budget.max_score_change:g}. It is asked of the fused score. Regret is what the "
        "float32 ensemble scores its own winner above the other: little, where the two were nearly equal."
    )
    promise = Paragraph(" ".join(f"{line[0].upper()}{line[1:]}." for line in promised(proof, budget)))
    blocks: list[Block] = [Paragraph(text), Table("Damage done by int8", ("", *DAMAGE), rows), promise]
    plots = list(score_plots(calibration))
    if plots:
        blocks.append(Plots(plots))
    saved = calibration.cost_float32 / calibration.cost_int8 if calibration.cost_int8 > 0 else 0
    times = f", {saved:.2f} times less" if saved else ""
    cost = (
        f"Linear layers of one new frame are estimated at {amount(calibration.cost_int8)} ms as shipped and "
        f"{amount(calibration.cost_float32)} ms in float32{times}."
    )
    return Section("damage", "What int8 did to decisions", [*blocks, Paragraph(cost)])


def _damaged(damage: Damage) -> list[str]:
    return [
        str(damage.decisions),
        few_digits(damage.max_score_change),
        few_digits(damage.mean_score_change),
        share(damage.winner_agreement, damage.decisions),
        few_digits(damage.max_regret),
        f"{damage.rank_correlation:.4f}",
    ]


def _sensitivity(calibration: CalibrationRecord) -> Section:
    blocks: list[Block] = []
    plots = [*sensitivity_plots(calibration), *noise_plots(calibration)]
    if plots:
        text = "How much decisions suffer if only one part is in int8, and how noisy each layer's own output becomes."
        blocks += [Paragraph(text), Plots(plots)]
    rows = [[each.stage, each.block or "the whole stage", *_damaged(each.damage)] for each in calibration.sensitivities]
    if rows:
        columns = ("stage", "block", *DAMAGE)
        blocks.append(Table("One part in int8, all else float32", columns, rows, folded=len(rows) > 8))
    return Section("sensitivity", "Where int8 hurts", blocks or [Paragraph("Nothing was recorded.")])


def _precision(calibration: CalibrationRecord, members: Sequence[MemberEntry]) -> Section:
    text = (
        "int8 (8): product in int8. stored (s): weights kept as int8, product in float32. float32 (f): untouched. "
        f"Ranges: {calibration.method}. Members by number: "
        + ", ".join(f"{index} is {member.name}" for index, member in enumerate(members))
        + "."
    )
    rows = []
    for stage in dict.fromkeys(layer.stage for layer in calibration.layers):
        counts = Counter(layer.precision for layer in calibration.layers if layer.stage == stage)
        rows.append([stage, *(str(counts[each]) for each in PRECISIONS)])  # type: ignore[index]
    blocks: list[Block] = [
        Paragraph(text),
        Table("Layers and other large tensors", ("stage", *(f"#{each}" for each in PRECISIONS)), rows),
        *precision_maps(calibration),
        _layers(calibration.layers, calibration.steps),
    ]
    return Section("precision", "Which layers are int8, and why", blocks)


def _layers(layers: Sequence[LayerOutcome], steps: Sequence[SearchStep]) -> Table:
    columns = ("stage", "layer", "precision", "#size", "#dB in int8", "#smoothing", "#range kept", "why")
    rows = [
        [
            layer.stage,
            layer.name,
            layer.precision,
            *_measured(layer),
            reason(layer, steps),
        ]
        for layer in layers
    ]
    return Table("Every layer and large tensor", columns, rows, folded=True)


def _measured(layer: LayerOutcome) -> list[str]:
    """Size, noise, smoothing and range of a linear layer; other tensors have none."""
    if layer.signal_to_noise_db is None:
        return [""] * 4
    return [
        f"{layer.inputs} x {layer.outputs}",
        f"{layer.signal_to_noise_db:.1f}",
        "none" if layer.smoothing is None else f"{layer.smoothing:g}",
        "" if layer.clipped is None else percent(layer.clipped),
    ]


def _search(calibration: CalibrationRecord) -> Section:
    """Choices of blocks, which the record gives with the damage of each alone, and trials of the whole, apart."""
    alone = {(f"{each.stage} {each.block}", each.damage) for each in calibration.sensitivities if each.block}
    chosen = [step for step in calibration.steps if (step.what, step.damage) in alone]
    trials = [step for step in calibration.steps if (step.what, step.damage) not in alone]
    text = "Everything was tried in int8 first. What fell back from there, and what was tried to find it:"
    blocks: list[Block] = [Paragraph(text)]
    if chosen:
        rows = [[step.what, step.to, *_damaged(step.damage), step.why] for step in chosen]
        columns = ("block", "became", *DAMAGE, "why")
        blocks.append(Table("Blocks that fell back, in order, and what int8 in each alone does", columns, rows))
    if trials:
        blocks += [Plots([trial_plot(calibration, trials)]), Steps([_told(step) for step in trials])]
    return Section("search", "How layers fell back", blocks)


def _told(step: SearchStep) -> tuple[str, str, bool]:
    damage = step.damage
    winners = share(damage.winner_agreement, damage.decisions)
    outcome = f"{step.why}. Largest score change {few_digits(damage.max_score_change)}, the same winner in {winners}."
    return f"{step.what} to {step.to}", outcome, step.kept
