"""Drawing samples: what is taken, what is refused, and what is merely told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import copied
from tests.datasets_kit import content
from tests.samples_kit import ACTIONS, NEEDS, InMemory, noise, save_folder, save_scenes, scene
from trunkline.calibration.samples.bundle_needs import BundleNeeds, instruction_check
from trunkline.calibration.samples.draw import DrawnSamples, DrawOptions, draw_samples
from trunkline.calibration.samples.overlap import overlap, short_digests
from trunkline.calibration.samples.sample import CalibrationSample, WindowForm
from trunkline.calibration.samples.sources import open_samples
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import DatasetError, InputError
from trunkline.runtime.manifest import TextEntry
from trunkline.runtime.text import TextSpec

SCENES = [scene(index, 24, 32) for index in range(40)]


def ids(samples: tuple[CalibrationSample, ...]) -> list[str]:
    return [sample.id for sample in samples]


def kinds(drawn: DrawnSamples) -> dict[str, float]:
    return {warning.kind: warning.value for warning in drawn.warnings}


def counts(drawn: DrawnSamples) -> tuple[int, int, int]:
    return len(drawn.calibrating), len(drawn.judging), len(drawn.proving)


def test_three_sides_are_drawn_without_a_shared_picture() -> None:
    drawn = draw_samples(InMemory(SCENES), NEEDS, DrawOptions(calibrate=12, judge=8, prove=15))
    assert counts(drawn) == (12, 8, 15)
    sides = [set(short_digests(side)) for side in (drawn.calibrating, drawn.judging, drawn.proving)]
    assert len(set.union(*sides)) == 35
    assert (drawn.name, drawn.kept_together) == ("memory", "picture")
    assert (drawn.unreadable, drawn.noise, drawn.shared) == ((), (), ())


def test_the_same_arguments_draw_the_same_samples() -> None:
    draws = [draw_samples(InMemory(SCENES), NEEDS, DrawOptions(8, 8, 8, seed)) for seed in (1, 1, 2)]
    assert ids(draws[0].calibrating) == ids(draws[1].calibrating) != ids(draws[2].calibrating)
    assert ids(draws[0].judging) == ids(draws[1].judging)
    assert ids(draws[0].proving) == ids(draws[1].proving) != ids(draws[2].proving)


@pytest.mark.parametrize(
    ("there", "given"), [(920, (12, 8, 900)), (919, (12, 8, 899)), (40, (12, 8, 20)), (30, (9, 6, 15)), (3, (1, 1, 1))]
)
def test_too_few_samples_leave_half_and_more_to_prove(there: int, given: tuple[int, int, int]) -> None:
    pictures = [scene(index, 16, 24) for index in range(there)]
    assert counts(draw_samples(InMemory(pictures), NEEDS, DrawOptions(12, 8, 900))) == given


def test_only_pictures_that_are_used_are_opened_and_once() -> None:
    source = InMemory(SCENES)
    drawn = draw_samples(source, NEEDS, DrawOptions(calibrate=6, judge=4, prove=5))
    assert len(source.opened) == 15
    assert len(drawn.digests) == 6
    assert drawn.calibrating[0].digest
    assert len(source.opened) == 15, "a digest was worked out twice"


def test_progress_counts_samples() -> None:
    seen: list[tuple[str, int, int]] = []
    draw_samples(InMemory(SCENES), NEEDS, DrawOptions(6, 4, 5), progress=lambda *each: seen.append(each))
    assert seen == [("reading samples", index, 15) for index in range(1, 16)]


def test_equal_pictures_under_other_names_do_not_judge() -> None:
    twice = SCENES[:10] + SCENES[:10]
    drawn = draw_samples(InMemory(twice), NEEDS, DrawOptions(calibrate=128, judge=128))
    assert sum(counts(drawn)) + len(drawn.shared) == 20
    assert drawn.shared
    assert overlap(drawn.digests, (*drawn.judging, *drawn.proving)).used == ()
    assert overlap(short_digests(drawn.judging), drawn.proving).used == ()


def test_episodes_are_kept_together() -> None:
    source = InMemory(SCENES, episodes=[index // 4 for index in range(40)])
    drawn = draw_samples(source, NEEDS, DrawOptions(calibrate=20, judge=20))
    assert drawn.kept_together == "episode"
    sides = [{each.episode for each in side} for side in (drawn.calibrating, drawn.judging, drawn.proving)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 10


def test_a_dataset_is_drawn_from_end_to_end(tmp_path: Path) -> None:
    drawn = draw_samples(open_samples(save_scenes(tmp_path, content(samples=48)), pool=5), NEEDS)
    assert sum(counts(drawn)) == 48
    assert drawn.name == "dataset.json"
    for sample in drawn.judging:
        assert sample.histories is not None
        assert sample.truth is not None


def test_another_source_judges() -> None:
    here, there = InMemory(SCENES[:20], name="here"), InMemory(SCENES[15:], name="there")
    drawn = draw_samples(here, NEEDS, DrawOptions(calibrate=20, judge=10), judge=there)
    assert counts(drawn) == (20, 8, 12)
    assert sorted(drawn.shared) == [f"#{index}" for index in range(5)]
    assert all(sample.picture.name.startswith("there") for sample in (*drawn.judging, *drawn.proving))


def test_sources_may_use_the_same_names() -> None:
    here = InMemory([*SCENES[:10], None])
    there = InMemory([*SCENES[20:31]])
    drawn = draw_samples(here, NEEDS, DrawOptions(20, 20, skip_unreadable=True), judge=there)
    assert len(drawn.judging) + len(drawn.proving) == 11


def test_judging_on_what_calibrates_is_refused() -> None:
    with pytest.raises(
        DatasetError, match=r"(?s)no samples are left to judge.*where: there.*its picture has another use"
    ):
        draw_samples(InMemory(SCENES, name="here"), NEEDS, judge=InMemory(SCENES[:5], name="there"))


def test_nothing_is_refused() -> None:
    with pytest.raises(DatasetError, match="there are no samples"):
        draw_samples(InMemory([]), NEEDS)
    with pytest.raises(DatasetError, match=r"(?s)no samples.*where: there"):
        draw_samples(InMemory(SCENES), NEEDS, judge=InMemory([], name="there"))
    with pytest.raises(InputError, match=r"(?s)at least 1 of each.*0 to calibrate, 5 to judge, 7 to prove"):
        draw_samples(InMemory(SCENES), NEEDS, DrawOptions(0, 5, 7))


def test_one_picture_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"(?s)show one picture.*memory 0"):
        draw_samples(InMemory(SCENES[:1]), NEEDS)


def test_one_picture_under_many_instructions_is_refused(tmp_path: Path) -> None:
    data = content()
    for row in data["samples"]:
        row["agent_view_image_file"] = "3.jpg"
    with pytest.raises(DatasetError, match=r"(?s)show one picture.*3.jpg"):
        draw_samples(open_samples(save_scenes(tmp_path, data), pool=4), NEEDS)


def test_copies_of_one_picture_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"(?s)all pictures are identical.*20 pictures with the same pixels.*frozen"):
        draw_samples(InMemory([SCENES[0]] * 20), NEEDS)


def test_single_colours_are_refused() -> None:
    flat = [np.full((24, 32, 3), index, np.uint8) for index in range(20)]
    with pytest.raises(DatasetError, match=r"(?s)every picture shows a single colour.*20 pictures.*covered"):
        draw_samples(InMemory(flat), NEEDS)


def test_noise_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"(?s)random noise.*20 of 20 pictures.*memory \d+: correlation.*recorded"):
        draw_samples(InMemory([noise(index) for index in range(40)]), NEEDS, DrawOptions(20, 10, 10))


def test_noise_among_judging_samples_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"(?s)random noise.*where: there"):
        draw_samples(InMemory(SCENES), NEEDS, judge=InMemory([noise(index) for index in range(9)], name="there"))


def test_a_broken_frame_is_left_out_and_told() -> None:
    pictures = [*SCENES, noise(1)]
    drawn = draw_samples(InMemory(pictures), NEEDS)
    assert sum(counts(drawn)) == 40
    assert len(drawn.noise) == 1
    assert drawn.noise[0].startswith("memory 40: correlation of neighbouring pixels")
    assert kinds(drawn)["noise"] == 1


def test_unreadable_pictures_stop_the_draw_and_are_all_named() -> None:
    pictures = [None if index % 4 == 0 else each for index, each in enumerate(SCENES)]
    with pytest.raises(DatasetError) as caught:
        draw_samples(InMemory(pictures), NEEDS)
    assert isinstance(caught.value.found, list)
    assert sorted(caught.value.found) == sorted(
        f"memory {index}: the image file cannot be read (broken data stream)" for index in range(0, 40, 4)
    )
    assert "skip unreadable" in str(caught.value)


def test_unreadable_pictures_are_replaced_if_so_chosen() -> None:
    pictures = [None if index % 4 == 0 else each for index, each in enumerate(SCENES)]
    drawn = draw_samples(InMemory(pictures), NEEDS, DrawOptions(10, 6, 4, skip_unreadable=True))
    assert counts(drawn) == (10, 6, 4)
    assert drawn.unreadable
    assert all("broken data stream" in line for line in drawn.unreadable)


def test_nothing_readable_is_refused_all_the_same() -> None:
    with pytest.raises(DatasetError, match=r"(?s)no samples are left to calibrate.*broken data stream.*and \d+ more"):
        draw_samples(InMemory([None] * 100), NEEDS, DrawOptions(skip_unreadable=True))


def test_spoilt_sets_end_soon() -> None:
    source = InMemory([None] * 3000)
    with pytest.raises(DatasetError, match="no samples are left"):
        draw_samples(source, NEEDS, DrawOptions(8, 8, 8, skip_unreadable=True))
    assert len(source.opened) <= 768


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, pictures=8)
    for name in ("2.png", "5.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:500])
    with pytest.raises(DatasetError, match=r"(?s)cannot be read.*[25].png.*[25].png"):
        draw_samples(open_samples(folder), NEEDS)
    drawn = draw_samples(open_samples(folder), NEEDS, DrawOptions(skip_unreadable=True))
    assert sorted(line[:5] for line in drawn.unreadable) == ["2.png", "5.png"]


def test_turned_photographs_are_named(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, pictures=4)
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(scene(9)).save(folder / "9.jpg", exif=tags)
    with pytest.raises(DatasetError, match=r"9.jpg: the image is stored turned"):
        draw_samples(open_samples(folder), NEEDS)


def test_another_kind_of_windows_is_refused_before_anything_is_opened() -> None:
    source = InMemory(SCENES, windows=WindowForm(8, 6, 0.0))
    with pytest.raises(DatasetError) as caught:
        draw_samples(source, NEEDS)
    assert caught.value.found == [
        "steps per window: 8, the bundle has 10",
        "numbers per step: 6, the bundle has 7",
        "padding value: 0, the bundle has -5",
    ]
    assert source.opened == []
    there = InMemory(SCENES, windows=WindowForm(10, 7, -1.0), name="there")
    with pytest.raises(DatasetError, match=r"(?s)where: there.*padding value: -1"):
        draw_samples(InMemory(SCENES), NEEDS, judge=there)


def test_an_unknown_padding_is_no_difference() -> None:
    histories = np.zeros((2, 10, 7), np.float32)
    source = InMemory(SCENES, windows=WindowForm(10, 7, None), histories=histories)
    assert draw_samples(source, NEEDS).calibrating[0].histories is histories


def test_padding_is_compared_in_float32() -> None:
    needs = BundleNeeds(dataclasses.replace(ACTIONS, padding_value=-0.1), NEEDS.instruction_problem)
    draw_samples(InMemory(SCENES, windows=WindowForm(10, 7, float(np.float32(-0.1)))), needs)


@pytest.mark.parametrize(
    ("histories", "problem"),
    [
        (np.zeros((2, 8, 7), np.float32), r"windows of shape \(8, 7\) instead of \(10, 7\)"),
        (np.full((2, 10, 7), np.nan, np.float32), "candidate 1: NaN or infinite values"),
        (np.full((1, 10, 7), -5, np.float32), "candidate 0: nothing but padding"),
        (np.zeros((0, 10, 7), np.float32), r"#\d+: there must be candidates.*: 0"),
    ],
)
def test_windows_that_cannot_be_scored_are_refused(histories: np.ndarray, problem: str) -> None:
    with pytest.raises(DatasetError, match=rf"(?s)cannot be scored by the bundle.*{problem}"):
        draw_samples(InMemory(SCENES, histories=histories), NEEDS)


def test_instructions_of_a_bundle_with_a_tokenizer(bundle: Path) -> None:
    needs = BundleNeeds.of(Bundle(bundle))
    words = ("lift the lid", "\ud800", "x" * 20_000, "open &#" + "9" * 5000 + ";")
    with pytest.raises(DatasetError) as caught:
        draw_samples(InMemory(SCENES, instructions=words), needs)
    message = str(caught.value)
    assert all(part in message for part in ("half a character", "too long", "cannot be cleaned"))
    assert "'lift the lid'" not in message
    assert draw_samples(InMemory(SCENES), needs).calibrating


def test_instructions_of_a_baked_bundle() -> None:
    text = TextEntry(
        TextSpec("canonicalize", 16, None, 100), baked="t.safetensors", instructions=("Lift the lid.", "stop")
    )
    needs = BundleNeeds(ACTIONS, instruction_check(text, None))
    assert draw_samples(InMemory(SCENES, instructions=("lift THE lid!", "stop")), needs).calibrating
    with pytest.raises(DatasetError, match=r"(?s)'close it': not one of the 2 baked instructions.*'go'"):
        draw_samples(InMemory(SCENES, instructions=("stop", "close it", "go")), needs)


def test_warnings_carry_numbers() -> None:
    drawn = draw_samples(InMemory(SCENES), NEEDS)
    assert kinds(drawn) == {"few_pictures": 10, "few_instructions": 1}
    assert str(drawn.warnings[0]) == "only 10 different pictures calibrate; 64 or more are advised"
    assert drawn.warnings[0].limit == 64


def test_a_broad_set_gets_no_warnings() -> None:
    pictures = [scene(index, 16, 24) for index in range(160)]
    words = [f"lift lid {index}" for index in range(10)]
    assert draw_samples(InMemory(pictures, instructions=words), NEEDS, DrawOptions(70, 40, 50)).warnings == ()


def test_few_episodes_are_told() -> None:
    drawn = draw_samples(InMemory(SCENES, episodes=[index // 20 for index in range(40)]), NEEDS)
    assert kinds(drawn)["few_episodes"] == 2
    assert drawn.kept_together == "picture"


def test_single_colours_among_others_are_told() -> None:
    black = [np.full((24, 32, 3), index, np.uint8) for index in range(10)]
    drawn = draw_samples(InMemory(SCENES + black), NEEDS)
    assert 0 < kinds(drawn)["one_colour"] <= 10


def test_a_bundle_is_not_needed_twice(bundle: Path, tmp_path: Path) -> None:
    needs = BundleNeeds.of(Bundle(copied(bundle, tmp_path / "bundle")))
    assert needs.actions == Bundle(bundle).manifest.actions
    assert needs.instruction_problem("put it down") is None
    assert "no words" in (needs.instruction_problem("  ") or "")
