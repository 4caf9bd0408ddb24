"""The report: what it says, that it says it alone, and that nothing from a bundle becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import copied, edit_manifest, put
from tests.calibration_kit import BUDGET, beyond_budget, calibrated, calibration_record, damage
from trunkline.calibration.int8.outcome import CalibrationRecord, LayerOutcome, ScorePairs, SearchStep
from trunkline.exporter.cli.output import plain
from trunkline.exporter.report import Report, collect, render, write_report
from trunkline.exporter.report.blocks import Plots, Table
from trunkline.exporter.report.precision_map import concerns, precision_maps, reason
from trunkline.exporter.report.sections import sections
from trunkline.exporter.report.words import amount, percent, printable, share, size
from trunkline.runtime import record
from trunkline.runtime.errors import BundleError, ExportError

#: Elements without an end tag.
VOID = {"meta", "br", "link", "img", "hr", "input"}
#: Attributes whose value a browser would fetch.
LOADED = {"src", "href", "xlink:href", "srcset", "data", "poster", "action", "background"}
NASTY = '<script>alert("x")</script><img src=https://example.org/x onerror=alert(1)>$\\frac{1}{0$'


class Page(HTMLParser):
    """What tests ask of a page: balanced elements, ids, texts, what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.problems: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        self.problems += [f"{tag} is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def tags(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def int8(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(bundle, tmp_path_factory.mktemp("report") / "int8")


@pytest.fixture(scope="module")
def full(int8: Path, bundle: Path) -> Report:
    """With everything that a report can have."""
    return collect(int8, against=bundle)


def test_the_page_is_whole_and_stands_alone(full: Report) -> None:
    text = render(full)
    page = Page(text)
    assert page.problems == []
    assert text.startswith("<!DOCTYPE html>")
    loaded = [value for _, each in page.elements for name, value in each.items() if name in LOADED]
    assert [value for value in loaded if not str(value).startswith("#")] == []
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    outside = set(re.findall(r"https?://[^\"'<> ]+", text))
    assert outside <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names, which nobody fetches


def test_anchors_and_ids_are_sound(full: Report) -> None:
    page = Page(render(full))
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))
    links = {each["href"] for each in page.tags("a")}
    links |= {value for _, each in page.elements for name, value in each.items() if name == "xlink:href"}
    assert {str(link).removeprefix("#") for link in links} <= set(ids)


def test_the_same_inputs_give_the_same_bytes(int8: Path, bundle: Path, tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        write_report(int8, tmp_path / name, latency=False, against=bundle)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_it_says_what_decides(full: Report) -> None:
    page = Page(render(full))
    assert full.verdict.passed
    assert page.text.count(f"Yes: on this machine, with {full.backend},") == 1
    assert "its int8 layers stayed within their budget" in page.text
    decisive = ["199 of 200 (99.5 %)", "0.018", "0.041", "only 4 instructions", "cut.png", "percentile 99.99"]
    decisive += [
        "gained too little",
        "not kept",
        "the 2 most damaging blocks to stored",
        "alone it saves 3.1 ms",
        "310 ms as shipped and 884 ms in float32",
        full.bundle.digest,
        "160 x 160 px, squash, bicubic, mean 0.5 0.45 0.4, std 0.5 0.25 0.3",
        "and mean and std are not the trunk's own in 0",
    ]
    assert [each for each in decisive if each not in page.text] == []


def test_every_plot_says_what_it_shows(full: Report) -> None:
    figures = Page(render(full)).tags("svg")
    assert len(figures) >= 12
    assert all(each["role"] == "img" and len(str(each["aria-label"])) > 40 for each in figures)
    assert all("width" not in each for each in figures)


def test_numbers_are_right_aligned(full: Report) -> None:
    tables = [block for section in sections(full) for block in section.blocks if isinstance(block, Table)]
    wrong = [
        (table.caption, column)
        for table in tables
        for index, column in enumerate(table.columns)
        if not column.startswith("#")
        and table.rows
        and column
        and all(re.fullmatch(r"[0-9.e+-]+", row[index]) for row in table.rows)
    ]
    assert wrong == []


def test_a_float32_bundle_has_no_empty_parts(bundle: Path) -> None:
    report = collect(bundle, latency=False)
    page = Page(render(report))
    assert page.text.count("holds no calibration record") == 1
    assert [section.key for section in sections(report)] == ["parity", "sizes", "bundle"]
    assert report.verdict.sentence.endswith("decides as the PyTorch ensemble did.")
    assert len(page.tags("svg")) == 1


def test_json_holds_the_same(full: Report) -> None:
    text = json.dumps(plain(full), allow_nan=False).encode()
    assert record.decode(text, Report) == full


def test_markup_in_a_bundle_stays_text(bundle: Path, tmp_path: Path) -> None:
    made_up = calibration_record()
    layer = made_up.layers[0]
    evil: CalibrationRecord = replace(
        made_up,
        method=NASTY,
        backend=NASTY,
        samples=replace(made_up.samples, source=NASTY, warnings=(NASTY,), skipped=(NASTY,)),
        layers=(*made_up.layers, replace(layer, block=f"{NASTY}.4", name=f"{NASTY}.4.{NASTY}")),
        sensitivities=(*made_up.sensitivities, replace(made_up.sensitivities[0], block=NASTY)),
        steps=(SearchStep(NASTY, "stored", damage(0.01), True, NASTY),),
    )
    folder = calibrated(bundle, tmp_path / "evil", evil)
    name = NASTY.replace("/", "-").replace(":", "-").replace("\\", "-")
    edit_manifest(folder, lambda manifest: manifest["members"][0].update(name=name, source=NASTY))
    edit_manifest(folder, lambda manifest: manifest["producer"].update({NASTY: "\u20261"}))
    text = render(collect(folder, latency=False))
    page = Page(text)
    assert page.problems == []
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert not [name for _, each in page.elements for name in each if name.startswith("on")]
    assert NASTY in page.text


def test_golden_instructions_are_escaped_and_shown(int8: Path, full: Report) -> None:
    parity = replace(full.bundle.parity, instructions=("a <b>bold</b> move", "turn \u202eleft\u2066 \x1b[2J"))
    page = Page(render(replace(full, bundle=replace(full.bundle, parity=parity))))
    assert "a <b>bold</b> move" in page.text
    assert r"turn \u202eleft\u2066 \x1b[2J" in page.text
    assert page.tags("b") == []


def test_a_budget_that_was_exceeded_is_said_first(bundle: Path, tmp_path: Path) -> None:
    folder = calibrated(bundle, tmp_path / "int8", beyond_budget(calibration_record()))
    verdict = collect(folder, latency=False).verdict
    assert not verdict.passed
    assert verdict.sentence.startswith("No: ")
    assert verdict.sentence.endswith("but its int8 layers exceeded their budget.")


def test_a_failed_gate_is_reported(bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "wrong")
    edit_manifest(folder, lambda manifest: manifest["parity"]["gates"].update(cpu=1e-12))
    report = collect(folder, latency=False)
    assert not report.verdict.passed
    assert "does not decide as the PyTorch ensemble did" in report.verdict.sentence
    assert any(each.startswith("Found: a score changed by") for each in report.verdict.details)
    assert 'class="verdict no"' in render(report)


def test_beside_another_bundle(full: Report) -> None:
    assert full.beside is not None
    assert full.beside.fused.max_score_change == 0  # the calibrated copy is float32 in truth
    assert [each.stage for each in full.beside.stages] == ["vision", "text", "context", "action"]
    assert all(each.signal_to_noise_db is None for each in full.beside.stages)
    page = Page(render(full))
    assert "The other bundle is bundle" in page.text
    assert "new frame (other)" in page.text


def test_stages_that_differ_are_measured(bundle: Path, full: Report, tmp_path: Path) -> None:
    other = copied(bundle, tmp_path / "noisy")
    name = "stages/action/cpu.weights"
    weights = np.frombuffer((other / name).read_bytes(), np.float32).copy()
    weights *= np.random.default_rng(0).uniform(0.999, 1.001, len(weights)).astype(np.float32)
    put(other, name, weights.tobytes())
    beside = collect(bundle, latency=False, against=other).beside
    assert beside is not None
    found = {each.stage: each.signal_to_noise_db for each in beside.stages}
    assert found["vision"] is None
    assert 40 < (found["action"] or 0) < 90
    assert 0 < beside.fused.max_score_change < 0.01


@pytest.mark.parametrize(
    ("change", "decisive"),
    [
        (lambda made_up: replace(made_up, members=made_up.members[:2]), "2 members, the bundle has 3"),
        (lambda made_up: replace(made_up, scores=ScorePairs((0.1, 0.2), (0.1,))), "2 scores against 1"),
        (lambda made_up: replace(made_up, layers=(replace(made_up.layers[0], stage="arm"),)), "a stage 'arm'"),
        (lambda made_up: replace(made_up, fused=replace(made_up.fused, decisions=0)), "winners kept of 0 decisions"),
        (
            lambda made_up: replace(made_up, all_int8=replace(made_up.all_int8, winners_kept=201)),
            "201 winners kept of 2",
        ),
    ],
)
def test_a_record_of_another_bundle_is_refused(bundle: Path, tmp_path: Path, change: Any, decisive: str) -> None:
    folder = calibrated(bundle, tmp_path / "int8", change(calibration_record()))
    with pytest.raises(BundleError, match="not this bundle's") as caught:
        collect(folder, latency=False)
    assert decisive in str(caught.value)


def test_a_record_with_nothing_in_it_makes_a_page(bundle: Path, tmp_path: Path) -> None:
    nothing = damage(0.0, 1.0)
    bare = replace(
        calibration_record(),
        layers=(),
        sensitivities=(),
        steps=(),
        scores=ScorePairs((), ()),
        all_int8=nothing,
        fused=nothing,
        members=(nothing,) * 3,
        cost_int8=0.0,
    )
    report = collect(calibrated(bundle, tmp_path / "int8", bare), latency=False)
    assert Page(render(report)).problems == []
    plots = [block for section in sections(report) for block in section.blocks if isinstance(block, Plots)]
    assert [len(block.plots) for block in plots] == [1]  # sizes only


def test_many_scores_are_thinned(int8: Path, full: Report) -> None:
    many = replace(full, calibration=calibration_record(scores=20000))
    assert len(render(many)) < 900_000


class TestOutput:
    def test_exists(self, bundle: Path, tmp_path: Path) -> None:
        output = tmp_path / "report.html"
        output.write_text("mine")
        with pytest.raises(ExportError, match="exists already") as caught:
            write_report(bundle, output, latency=False)
        assert "--overwrite" in str(caught.value)
        assert output.read_text() == "mine"
        write_report(bundle, output, latency=False, overwrite=True)
        assert output.read_text().startswith("<!DOCTYPE html>")

    def test_is_a_directory(self, bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="is a directory"):
            write_report(bundle, tmp_path, latency=False, overwrite=True)

    def test_lies_in_the_bundle(self, bundle: Path, tmp_path: Path) -> None:
        folder = copied(bundle, tmp_path / "copy")
        with pytest.raises(ExportError, match="inside the bundle"):
            write_report(folder, folder / "stages" / "report.html", latency=False)
        collect(folder, latency=False)

    def test_cannot_be_written(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ExportError, match="cannot write the report"):
            write_report(bundle, tmp_path / "file" / "report.html", latency=False)

    def test_is_whole_or_not_there(self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        output = tmp_path / "report.html"
        output.write_text("before")

        def stopped(report: Report) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr("trunkline.exporter.report.write.render", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_report(bundle, output, latency=False, overwrite=True)
        assert output.read_text() == "before"
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


class TestPrecisionMap:
    def test_rows_and_columns_come_from_the_names(self) -> None:
        maps = list(precision_maps(calibration_record(blocks=4)))
        assert [(each.stage, each.caption) for each in maps] == [
            ("vision", "features.trunk.blocks"),
            ("text", "features.model.text.transformer.resblocks"),
            ("text", "layers that do not repeat"),
            ("context", "member"),
            ("action", "member"),
        ]
        assert [row for row, _ in maps[0].rows] == ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
        assert list(maps[0].columns) == ["0", "1", "2", "3"]
        assert [row for row, _ in maps[2].rows] == [
            "features.model.text.text_projection",
            "features.model.text.token_embedding.weight",
            "features.model.text.positional_embedding",
        ]

    def test_cells_say_why(self) -> None:
        cells = dict(next(precision_maps(calibration_record())).rows)["mlp.fc1"]
        assert [cell and cell.precision for cell in cells] == ["int8"] * 3 + ["stored"] + ["int8"] * 2
        assert cells[3] is not None
        assert "alone it saves 3.1 ms" in cells[3].title
        assert "gained too little" not in cells[3].title  # that trial was not kept
        assert cells[2] is not None
        assert "nothing moved it" in cells[2].title

    @pytest.mark.parametrize(
        ("what", "expected"),
        [
            ("action", True),
            ("member.1", True),
            ("action member.1", True),
            ("action/member.1.qkv", True),
            ("context member.1", False),
            ("member.10", False),
            ("", False),
        ],
    )
    def test_which_layers_a_step_is_about(self, what: str, expected: bool) -> None:
        layer = LayerOutcome("action", "member.1", "member.1.qkv", "stored", 1, 1, 30.0, None, 1.0)
        assert concerns(SearchStep(what, "stored", damage(0.1), True, ""), layer) is expected

    def test_the_last_step_to_that_precision_is_the_reason(self) -> None:
        layer = LayerOutcome("action", "member.1", "member.1.qkv", "stored", 1, 1, 30.0, None, 1.0)
        steps = [
            SearchStep("member.1", "float32", damage(0.1), True, "too noisy"),
            SearchStep("member.1", "stored", damage(0.1), True, "as good"),
            SearchStep("member.1", "int8", damage(0.1), False, "no"),
        ]
        assert reason(layer, steps) == "as good; largest score change 0.1"
        assert "nothing moved it" in reason(layer, [])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (percent(1.0), "100.0 %"),
        (percent(0.99999), "99.9990 %"),
        (share(0.995, 200), "199 of 200 (99.5 %)"),
        (size(312_400_000), "312.4 MB"),
        (amount(2411.3), "2411"),
        (printable("a\tb\u202e\n"), r"a\tb\u202e\n"),
    ],
)
def test_words(found: str, expected: str) -> None:
    assert found == expected


def test_the_budget_of_the_kit_is_met() -> None:
    assert BUDGET.met(calibration_record().fused)
    assert not BUDGET.met(calibration_record().all_int8)


def test_a_layer_that_came_back_with_others_says_so() -> None:
    layer = LayerOutcome("vision", "features.trunk.blocks.3", "features.trunk.blocks.3.attn.qkv", "int8")
    withdrawn = SearchStep("vision features.trunk.blocks.3", "stored", damage(0.01), True, "alone it saves 3.1 ms")
    back = SearchStep("the 12 cleanest layers", "int8", damage(0.004), True, "layers of withdrawn blocks")
    refused = replace(back, what="the 24 cleanest layers", damage=damage(0.06), kept=False)
    assert reason(layer, (withdrawn, refused, back)).startswith(
        "layers of withdrawn blocks; largest score change 0.004"
    )
    assert reason(replace(layer, precision="stored"), (withdrawn, back)).startswith("alone it saves 3.1 ms")
    assert reason(layer, (back,)) == "as the search began; nothing moved it"
