"""Report in, sections of the page out: what every bundle has. The parts on int8 are in ``int8_sections``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trunkline.exporter.report.blocks import Block, Paragraph, Plots, Section, Table
from trunkline.exporter.report.content import Beside, BundleFacts, Report
from trunkline.exporter.report.int8_sections import int8_sections, sample_section
from trunkline.exporter.report.measured_plots import latency_plot, size_plot
from trunkline.exporter.report.words import amount, few_digits, size
from trunkline.runtime.parity import Comparison
from trunkline.targets.latency import CaseLatency, LatencyReport

COMPARED = ("#decisions", "#largest score change", "#winners changed", "#too close to call", "#lowest rank correlation")


def sections(report: Report) -> Iterator[Section]:
    """The page's sections, in order; a part that a report does not have is left out."""
    yield _parity(report)
    if report.calibration is not None:
        yield from int8_sections(report.calibration, report.bundle.members)
    if report.beside is not None:
        yield _beside(report, report.beside)
    yield _sizes(report)
    if report.latency is not None:
        yield _latency(report, report.latency)
    if report.calibration is not None:
        yield sample_section(report.calibration)
    yield _bundle(report)


def _parity(report: Report) -> Section:
    parity, exported = report.parity, report.bundle.parity
    names = [member.name for member in report.bundle.members]
    rows = [["fused", *_compared(parity.fused)]]
    rows += [[name, *_compared(each)] for name, each in zip(names, parity.members, strict=True)]
    text = (
        f"Inputs that lie in the bundle were run here with {report.backend} and held against the scores of PyTorch in "
        f"float32. The gate: no fused score may move by more than {parity.allowed_score_change:g}, and no winner may "
        f"change whose lead exceeds {parity.margin:g}. When the bundle was made, the largest change was "
        f"{few_digits(exported.measured_score_change)}."
    )
    inputs = (
        f"Preprocessing gave the same pixels in {parity.frames - parity.pixels_changed} of {parity.frames} frames, "
        f"and mean and std are not the trunk's own in {parity.normalised_changed}; "
        f"{parity.ids_changed} of {len(exported.instructions)} instructions were tokenised differently."
    )
    table = Table("Golden vectors against PyTorch", ("", *COMPARED), rows)
    blocks: list[Block] = [Paragraph(text), table, Paragraph(inputs)]
    return Section("parity", "Does it decide as PyTorch did?", blocks)


def _compared(comparison: Comparison) -> list[str]:
    return [
        str(comparison.decisions),
        few_digits(comparison.max_score_change),
        str(comparison.winners_changed),
        str(comparison.winners_close),
        f"{comparison.rank_correlation:.4f}",
    ]


def _beside(report: Report, beside: Beside) -> Section:
    names = [member.name for member in report.bundle.members]
    rows = [["fused", *_compared(beside.fused)]]
    rows += [[name, *_compared(each)] for name, each in zip(names, beside.members, strict=False)]
    text = (
        f"The other bundle is {beside.bundle.name} (digest {beside.bundle.digest[:12]}). It was run on this bundle's "
        f"golden inputs; changes are of this bundle's scores, the other's taken as right."
    )
    blocks: list[Block] = [Paragraph(text), *(Paragraph(note) for note in beside.notes)]
    blocks.append(Table("Scores against the other bundle", ("", *COMPARED), rows))
    differences = [
        [
            each.stage,
            few_digits(each.max_change),
            "the same" if each.signal_to_noise_db is None else f"{each.signal_to_noise_db:.1f}",
        ]
        for each in beside.stages
    ]
    if differences:
        columns = ("stage", "#largest difference", "#signal to noise, dB")
        blocks.append(Table("Outputs of each stage, everything before it included", columns, differences))
    return Section("beside", "Beside another bundle", blocks)


def _sizes(report: Report) -> Section:
    bundles = [report.bundle, *([report.beside.bundle] if report.beside else [])]
    columns = ("stage or file", "variant", "precision", "#opset", "#graph", "#weights", "#together")
    rows = []
    for form in report.bundle.stages:
        sizes = (form.graph_bytes, form.weight_bytes, form.graph_bytes + form.weight_bytes)
        rows.append([form.stage, form.variant, form.precision, str(form.opset), *map(size, sizes)])
    others = {**report.bundle.other_bytes, "all files": report.bundle.total_bytes}
    rows += [[name, *[""] * 5, size(count)] for name, count in others.items()]
    blocks: list[Block] = [Plots([size_plot(bundles)]), Table("Files", columns, rows)]
    if report.beside is not None:
        blocks.append(_size_comparison(report.bundle, report.beside.bundle))
    return Section("sizes", "Sizes", blocks)


def _size_comparison(bundle: BundleFacts, other: BundleFacts) -> Table:
    ours, theirs = _stage_bytes(bundle), _stage_bytes(other)
    rows = []
    for name in dict.fromkeys([*ours, *theirs]):
        both = [counts.get(name, 0) for counts in (ours, theirs)]
        times = f"{both[0] / both[1]:.2f}" if all(both) else ""
        rows.append([name, *(size(count) if count else "none" for count in both), times])
    return Table("Sizes beside the other bundle", ("", "#this", "#other", "#this / other"), rows)


def _stage_bytes(bundle: BundleFacts) -> dict[str, int]:
    counts: dict[str, int] = {}
    for form in bundle.stages:
        counts[form.stage] = counts.get(form.stage, 0) + form.weight_bytes + form.graph_bytes
    return {**counts, "all files": bundle.total_bytes}


def _latency(report: Report, latency: LatencyReport) -> Section:
    pairs = [(report.bundle, latency)]
    if report.beside is not None and report.beside.latency is not None:
        pairs.append((report.beside.bundle, report.beside.latency))
    text = (
        f"Measured with {latency.backend} on {report.machine}: {latency.cases[0].calls} calls of each kind with "
        f"{latency.candidates} candidates, all instructions seen before. Outside is what a call spends on checking, "
        f"resizing, hashing, caches and fusion."
    )
    blocks: list[Block] = [Paragraph(text), Plots([latency_plot(pairs)])]
    titles = ("This bundle", "The other bundle") if len(pairs) > 1 else ("Latency",)
    for title, (_, each) in zip(titles, pairs, strict=True):
        rows = [row for case in each.cases for row in _case_rows(case)]
        columns = ("call", "part", "#median", "#90th percentile", "#longest")
        blocks.append(Table(f"{title}, milliseconds", columns, rows))
    return Section("latency", "Latency on this machine", blocks)


def _case_rows(case: CaseLatency) -> Iterator[Sequence[str]]:
    parts = {"whole call": case.total, **case.stages, "outside": case.outside}
    for index, (part, spent) in enumerate(parts.items()):
        values = (spent.p50_ms, spent.p90_ms, spent.max_ms)
        yield ["" if index else case.name, part, *map(amount, values)]


def _bundle(report: Report) -> Section:
    bundle = report.bundle
    actions, image, text = bundle.actions, bundle.image, bundle.text
    told = f"{len(text.instructions)} baked" if text.baked else f"any, {text.spec.context_length} tokens"
    facts = [
        ["name", bundle.name],
        ["kind", f"{bundle.kind} bundle, schema {bundle.schema}"],
        ["digest", bundle.digest],
        ["size", size(bundle.total_bytes)],
        ["trunk", f"{bundle.trunk.name}, width {bundle.trunk.width}, {bundle.trunk.patches} patches"],
        ["trunk digest", bundle.trunk.digest],
        ["candidates", f"up to {actions.history_length} steps of {actions.action_dim}, {actions.encoder} encoder"],
        *([["sensor", bundle.sensor.form.in_words()]] if bundle.sensor else []),
        ["image", image.in_words()],
        ["instructions", told],
        ["made with", ", ".join(f"{name} {version}" for name, version in bundle.producer.items())],
        ["reported on", f"{report.machine}; {report.backend}"],
    ]
    members = [[each.name, each.source, each.digest] for each in bundle.members]
    blocks: list[Block] = [
        Table("What it is", ("", ""), facts),
        Table("Members", ("name", "source", "digest"), members),
        _instructions("Golden instructions", bundle.parity.instructions),
    ]
    if text.instructions:
        blocks.append(_instructions("Baked instructions", text.instructions))
    return Section("bundle", "The bundle", blocks)


def _instructions(caption: str, instructions: Sequence[str]) -> Table:
    rows = [[str(index), text] for index, text in enumerate(instructions)]
    return Table(caption, ("#", "instruction"), rows, folded=len(rows) > 8)
