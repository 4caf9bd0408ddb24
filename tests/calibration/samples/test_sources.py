"""Samples of data sets and folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets_kit import INSTRUCTIONS, changed, content, legacy, save, window
from tests.samples_kit import ACTIONS, save_folder, save_scenes, scene
from trunkline.calibration.evaluation import draw_decisions
from trunkline.calibration.samples.dataset import read_dataset
from trunkline.calibration.samples.dataset_samples import DatasetSamples, sample_of
from trunkline.calibration.samples.folder_samples import FolderSamples
from trunkline.calibration.samples.sample import CalibrationSample, Picture, Samples, WindowForm
from trunkline.calibration.samples.sources import open_samples
from trunkline.calibration.samples.synthetic import candidates_for
from trunkline.runtime.errors import DatasetError, ImageError, InputError


def windows(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 10, 7)).astype(np.float32)


def test_a_dataset_gives_its_windows_in_pools(tmp_path: Path) -> None:
    dataset = read_dataset(save_scenes(tmp_path))
    samples: Samples = open_samples(tmp_path / "dataset.json", pool=5)
    assert isinstance(samples, DatasetSamples)
    assert (samples.name, len(samples)) == ("dataset.json", len(dataset.samples))
    assert samples.windows == WindowForm(10, 7, -5.0)
    places = set()
    for index, known in enumerate(dataset.samples):
        sample = samples[index]
        assert (sample.id, sample.instruction, sample.episode) == (known.id, known.instruction, known.episode)
        assert sample.histories is not None
        assert sample.truth is not None
        assert sample.histories.shape == (5, 10, 7)
        np.testing.assert_array_equal(sample.histories[sample.truth], known.history)
        assert len({row.tobytes() for row in sample.histories}) == 5
        np.testing.assert_array_equal(samples[index].histories, sample.histories)
        places.add(sample.truth)
    assert len(places) > 2


def test_pools_depend_on_the_seed(tmp_path: Path) -> None:
    path = save_scenes(tmp_path)
    one, same, other = (open_samples(path, pool=5, seed=seed)[0].histories for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert one is not None
    assert other is not None
    assert one.tobytes() != other.tobytes()


def test_nothing_is_decoded_before_somebody_looks(tmp_path: Path) -> None:
    path = save_scenes(tmp_path)
    (tmp_path / "images" / "0.jpg").write_bytes(b"\xff\xd8 not any more")
    samples = open_samples(path)
    assert samples[0].instruction == INSTRUCTIONS[0]
    with pytest.raises(ImageError, match="cannot be read"):
        samples[0].open()
    assert np.asarray(samples[1].open()).shape == (48, 64, 3)


def test_samples_of_one_frame_share_a_picture(tmp_path: Path) -> None:
    samples = open_samples(save_scenes(tmp_path))
    assert samples[0].picture is samples[6].picture
    assert samples[0].digest != samples[7].digest
    assert samples[0].picture.facts.digest == samples[6].picture.facts.digest


def test_the_digest_is_of_picture_and_instruction() -> None:
    one, same = (CalibrationSample(name, "lift", Picture(name, lambda: scene(0))) for name in "ab")
    other_words = CalibrationSample("a", "drop", one.picture)
    other_picture = CalibrationSample("a", "lift", Picture("a", lambda: scene(1)))
    assert one.digest == same.digest
    assert len(one.digest) == 64
    assert len({one.digest, other_words.digest, other_picture.digest}) == 3


def test_a_picture_is_decoded_once_and_not_kept() -> None:
    opened = []

    def source() -> np.ndarray:
        opened.append(1)
        return scene(0)

    picture = Picture("a", source)
    assert (picture.facts, picture.facts.digest) == (
        picture.facts,
        CalibrationSample("a", "b", picture).picture.facts.digest,
    )
    assert len(opened) == 1
    picture.open()
    assert len(opened) == 2


def test_rows_left_out_are_noted(tmp_path: Path) -> None:
    samples = open_samples(save(tmp_path, changed(content(), "samples", 0, "instruction_id", to="")))
    assert samples.notes == ("1 rows left out: no instruction_id",)


def test_a_dataset_of_one_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing to choose from"):
        open_samples(save(tmp_path, content(samples=1)))


def test_evaluations_decisions_are_samples(tmp_path: Path) -> None:
    case = draw_decisions(read_dataset(save_scenes(tmp_path)), samples=1, pool=3)[0]
    sample = sample_of(case)
    assert (sample.id, sample.instruction, sample.truth) == (case.sample, case.instruction, case.truth)
    assert sample.picture.facts.correlation > 0.5


def test_a_folder_takes_instructions_in_turn(tmp_path: Path) -> None:
    samples: Samples = open_samples(save_folder(tmp_path / "frames", pictures=5))
    assert isinstance(samples, FolderSamples)
    assert (samples.name, len(samples), samples.windows) == ("frames", 5, None)
    assert [samples[index].instruction for index in range(3)] == ["lift the lid", "close the drawer", "lift the lid"]
    assert samples.notes == ("instructions.txt has 2 lines for 5 pictures: they are taken in turn",)
    assert [samples[index].id for index in range(5)] == [f"{index}.png" for index in range(5)]
    assert samples[0].histories is None
    assert samples[0].truth is None
    np.testing.assert_array_equal(np.asarray(samples[2].open()), scene(2))


def test_one_line_per_picture_follows_the_names(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, pictures=3, instructions=("a", "b", "c"))
    (folder / "2.png").rename(folder / "10.png")
    samples = FolderSamples(folder)
    assert [(samples[i].id, samples[i].instruction) for i in range(3)] == [
        ("0.png", "a"),
        ("1.png", "b"),
        ("10.png", "c"),
    ]
    assert samples.notes == ()


def test_files_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, pictures=2)
    for name in (".hidden.png", "readme.md", "film.gif", "photo.webp"):
        (folder / name).write_bytes(b"?")
    (folder / "deeper").mkdir()
    (folder / "3.png").mkdir()
    Image.fromarray(scene(9)).save(folder / "Shot.JPG")
    samples = FolderSamples(folder)
    assert [samples[index].id for index in range(len(samples))] == ["0.png", "1.png", "Shot.JPG"]
    assert "2 pictures are in formats that are not read, e.g. film.gif" in samples.notes


def test_a_mark_and_other_line_ends_are_read(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, pictures=2)
    (folder / "instructions.txt").write_bytes("\ufefföffne die Tür\r\nlift\u2028it\r\n\r\n".encode())
    samples = FolderSamples(folder)
    assert [samples[index].instruction for index in range(2)] == ["öffne die Tür", "lift\u2028it"]


@pytest.mark.parametrize("form", ["npy", "json"])
def test_pools_are_drawn_from_a_folders_windows(tmp_path: Path, form: str) -> None:
    folder, known = save_folder(tmp_path), windows()
    known[5] = known[0]
    if form == "npy":
        np.save(folder / "candidates.npy", known)
    else:
        (folder / "candidates.json").write_text(json.dumps(known.tolist()))
    samples = open_samples(folder, pool=4)
    assert samples.windows == WindowForm(10, 7, None)
    pools = [samples[index].histories for index in range(len(samples))]
    assert all(pool is not None and pool.shape == (4, 10, 7) and pool.dtype == np.float32 for pool in pools)
    assert len({pool.tobytes() for pool in pools if pool is not None}) > 1
    np.testing.assert_array_equal(samples[1].histories, pools[1])
    largest = open_samples(folder)[0].histories
    assert largest is not None
    assert len(largest) == 5, "equal windows are one"
    assert samples[0].truth is None


def test_windows_are_made_up_for_a_folder_without(tmp_path: Path) -> None:
    samples = FolderSamples(save_folder(tmp_path))
    one, again, other = (candidates_for(samples[index], ACTIONS) for index in (0, 0, 1))
    assert one.shape == (20, 10, 7)
    np.testing.assert_array_equal(one, again)
    assert one.tobytes() != other.tobytes()
    np.save(tmp_path / "candidates.npy", windows())
    own = FolderSamples(tmp_path)[0]
    assert candidates_for(own, ACTIONS) is own.histories


def array_file(header: str, numbers: int = 0) -> bytes:
    """An array file with this header, followed by float32 zeros."""
    return b"\x93NUMPY\x01\x00v\x00" + header.encode().ljust(117) + b"\n" + bytes(4 * numbers)


BAD_CANDIDATES = {
    "empty": b"",
    "not an array": b"PK",
    "huge": array_file("{'descr': '<f4', 'fortran_order': False, 'shape': (900000000, 10, 7), }", 140),
    "negative": array_file("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -1, 7), }", 140),
    "objects": array_file("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2, 2), }", 64),
    "header that ends early": array_file("{'descr': '<f4', 'shape': (2, 2, 2"),
    "header of no literal": array_file("{'descr': <f4 }"),
    "header of code": array_file("{'descr': open('x'), 'fortran_order': False, 'shape': (2,)}"),
}


@pytest.mark.parametrize("name", BAD_CANDIDATES)
def test_arrays_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    (save_folder(tmp_path) / "candidates.npy").write_bytes(BAD_CANDIDATES[name])
    with pytest.raises(DatasetError, match=r"(?s)does not hold windows.*candidates.npy.*numpy.save"):
        FolderSamples(tmp_path)


@pytest.mark.parametrize(
    ("shape", "value"), [((3, 10), 0.5), ((0, 10, 7), 0.5), ((3, 2, 2), "a"), ((2, 2, 2), 1j), ((2, 2, 2), True)]
)
def test_arrays_of_other_things_are_refused(tmp_path: Path, shape: tuple[int, ...], value: object) -> None:
    np.save(save_folder(tmp_path) / "candidates.npy", np.full(shape, value))
    with pytest.raises(DatasetError, match="does not hold windows"):
        FolderSamples(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[[1, 2]]", "[[[1], [1, 2]]]", "[[[NaN]]]", "[" * 100_000, '[[["a"]]]', "[[[null]]]"]
)
def test_lists_of_other_things_are_refused(tmp_path: Path, text: str) -> None:
    (save_folder(tmp_path) / "candidates.json").write_text(text)
    with pytest.raises(DatasetError, match=r"(?s)does not hold windows.*candidates.json"):
        FolderSamples(tmp_path)


def test_windows_that_are_not_finite_are_named(tmp_path: Path) -> None:
    known = windows().astype(np.float64)
    known[1, 0, 0], known[4, 2, 2] = np.nan, 1e300
    np.save(save_folder(tmp_path) / "candidates.npy", known)
    with pytest.raises(DatasetError, match=r"(?s)window 1: NaN or infinite.*window 4"):
        FolderSamples(tmp_path)


def test_an_archive_is_refused(tmp_path: Path) -> None:
    np.savez(save_folder(tmp_path) / "a.npz", windows())
    (tmp_path / "a.npz").rename(tmp_path / "candidates.npy")
    with pytest.raises(DatasetError, match=r"does not hold windows"):
        FolderSamples(tmp_path)


def test_two_files_of_windows_are_refused(tmp_path: Path) -> None:
    np.save(save_folder(tmp_path) / "candidates.npy", windows())
    (tmp_path / "candidates.json").write_text("[]")
    with pytest.raises(DatasetError, match="two files of windows"):
        FolderSamples(tmp_path)


def test_equal_windows_leave_no_choice(tmp_path: Path) -> None:
    np.save(save_folder(tmp_path) / "candidates.npy", np.zeros((5, 10, 7)))
    with pytest.raises(DatasetError, match="nothing to choose from"):
        FolderSamples(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "no lines"),
        (b"\n\n", "no lines"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\nc\n", "3 lines for 2 pictures"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_instructions_that_do_not_fit_are_refused(tmp_path: Path, text: bytes, problem: str) -> None:
    (save_folder(tmp_path, pictures=2) / "instructions.txt").write_bytes(text)
    with pytest.raises(DatasetError, match=problem):
        FolderSamples(tmp_path)


def test_a_folder_without_instructions_is_refused(tmp_path: Path) -> None:
    (save_folder(tmp_path) / "instructions.txt").unlink()
    with pytest.raises(DatasetError, match=r"(?s)what the robot is told.*instructions.txt.*no such file"):
        FolderSamples(tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "frames", pictures=2)
    Image.fromarray(scene(7)).save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", folder / "2.png")
    with pytest.raises(DatasetError, match=r"(?s)links that lead out.*2.png"):
        FolderSamples(folder)
    (folder / "2.png").unlink()
    os.symlink(folder / "0.png", folder / "again.png")
    assert len(FolderSamples(folder)) == 3
    (tmp_path / "words.txt").write_text("lift")
    (folder / "instructions.txt").unlink()
    os.symlink(tmp_path / "words.txt", folder / "instructions.txt")
    with pytest.raises(DatasetError, match="a link that leads out"):
        FolderSamples(folder)


def test_candidates_behind_a_link_are_refused(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "frames")
    np.save(tmp_path / "other.npy", windows())
    os.symlink(tmp_path / "other.npy", folder / "candidates.npy")
    with pytest.raises(DatasetError, match="a link that leads out"):
        FolderSamples(folder)


def test_what_data_is_decides(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    save(folder, content())
    with pytest.raises(DatasetError, match=r"(?s)no pictures.*if dataset.json is a data set, name the file"):
        open_samples(folder)
    with pytest.raises(DatasetError, match=r"(?s)cannot open samples.*nothing"):
        open_samples(tmp_path / "none")
    with pytest.raises(InputError, match="at least 2 windows"):
        open_samples(folder / "dataset.json", pool=1)
    with pytest.raises(InputError, match=r"(?s)its own pictures.*leave the other folder out"):
        open_samples(folder, images=folder)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DatasetError, match=r"(?s)no pictures.*no files.*camera's frames"):
        open_samples(tmp_path / "bare")
    (tmp_path / "moved").mkdir()
    assert len(open_samples(folder / "dataset.json", images=tmp_path / "moved")) == 24


def test_legacy_data_sets_are_opened(tmp_path: Path) -> None:
    samples = open_samples(save(tmp_path, legacy()), images=tmp_path / "images", pool=3)
    assert len(samples) == 18
    assert samples[0].episode is None
    np.testing.assert_array_equal(samples[0].histories[samples[0].truth], np.float32(window(0)))  # type: ignore[index]
