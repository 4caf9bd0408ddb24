"""The published data set is read as its own readers read it, and what contradicts itself is refused by name."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.datasets_kit import FRAMES, INSTRUCTIONS, SHAPE, WINDOWS, changed, content, legacy, save, save_images, window
from trunkline.calibration.samples import dataset as module
from trunkline.calibration.samples.dataset import read_dataset
from trunkline.runtime.errors import DatasetError, ImageError

FIRST = ("samples", 0)


def refused(tmp_path: Path, data: object, *words: str, images: Path | None = None) -> DatasetError:
    path = save(tmp_path, data)
    with pytest.raises(DatasetError) as caught:
        read_dataset(path, images)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    return caught.value


def test_reads_everything_of_the_published_form(tmp_path: Path) -> None:
    dataset = read_dataset(save(tmp_path, content()))
    assert (dataset.form, len(dataset.samples), dataset.skipped) == ("keyed", 24, ())
    assert (dataset.history_length, dataset.action_dim, dataset.padding_value) == (10, 7, -5.0)
    assert dataset.instructions["instr_2"] == "open the drawer\u2019s lid"
    assert dataset.metadata["format_version"] == "2.1_centered_window"
    sample = dataset.samples[9]
    assert (sample.id, sample.episode, sample.timestep) == ("samples[9]", 1, 3)
    assert sample.instruction == INSTRUCTIONS[0]
    assert sample.image == tmp_path / "images" / "3.jpg"
    assert sample.history.dtype == np.float32
    np.testing.assert_array_equal(sample.history, np.float32(window(1)))


def test_windows_are_shared_and_read_only(tmp_path: Path) -> None:
    dataset = read_dataset(save(tmp_path, content()))
    assert dataset.samples[0].history is dataset.samples[WINDOWS].history is dataset.histories["action_0"]
    with pytest.raises(ValueError, match="read-only"):
        dataset.samples[0].history[0, 0] = 1


def test_images_open_lazily_and_only_as_images(tmp_path: Path) -> None:
    path = save(tmp_path, content())
    (tmp_path / "images" / "2.jpg").write_bytes(b"not an image")
    (tmp_path / "images" / "3.jpg").unlink()
    dataset = read_dataset(path)
    assert dataset.samples[0].open().size == (32, 24)
    with pytest.raises(ImageError, match="cannot be read"):
        dataset.samples[2].open()
    with pytest.raises(ImageError, match="no image file"):
        dataset.samples[3].open()


def test_another_images_folder_can_be_named(tmp_path: Path) -> None:
    path = save(tmp_path / "data", changed(content(), "_metadata", "images_folder", to="/elsewhere"), images=False)
    save_images(tmp_path / "frames")
    assert read_dataset(str(path), str(tmp_path / "frames")).samples[1].image == tmp_path / "frames" / "1.jpg"


def test_legacy_form(tmp_path: Path) -> None:
    path = save(tmp_path, legacy())
    dataset = read_dataset(path, tmp_path / "images")
    assert (dataset.form, len(dataset.samples), len(dataset.histories)) == ("legacy", 18, 4)
    assert (dataset.history_length, dataset.action_dim, dataset.padding_value) == (*SHAPE, -5.0)
    sample = dataset.samples[7]
    assert sample.id == f"{INSTRUCTIONS[1]!r}.samples[1]"
    assert (sample.instruction, sample.episode, sample.timestep) == (INSTRUCTIONS[1], None, None)
    assert sample.history is dataset.samples[1].history
    assert list(dataset.instructions.values()) == list(INSTRUCTIONS)


def test_legacy_rows_without_a_sentence_take_that_of_their_group(tmp_path: Path) -> None:
    data = legacy()
    for row in data[INSTRUCTIONS[0]]["samples"]:
        del row["language_instruction"]
    assert read_dataset(save(tmp_path, data), tmp_path / "images").samples[0].instruction == INSTRUCTIONS[0]


def test_legacy_form_needs_the_images_folder(tmp_path: Path) -> None:
    refused(tmp_path, legacy(), "cannot tell where the images are", "no images_folder", "images=FOLDER")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"total_window_size": 10, "history_length": 6, "action_dim": 7}, (10, 7, -5.0)),
        ({"history_length": 10, "action_dim": 7, "padding_value": -9}, (10, 7, -9.0)),
        ({}, (10, 7, -5.0)),
    ],
    ids=["total_window_size wins", "older generator", "nothing stated"],
)
def test_sizes_come_from_metadata_or_the_first_window(
    tmp_path: Path, metadata: dict[str, Any], expected: tuple[int, int, float]
) -> None:
    data = content() | {"_metadata": metadata | {"images_folder": "images"}}
    dataset = read_dataset(save(tmp_path, data))
    assert (dataset.history_length, dataset.action_dim, dataset.padding_value) == expected


def test_unknown_metadata_and_fields_are_ignored(tmp_path: Path) -> None:
    data = changed(content(), "_metadata", "camera", to={"name": "front"}) | {"comment": 1}
    data["samples"][0]["weather"] = "sunny"
    assert len(read_dataset(save(tmp_path, data)).samples) == 24


def test_rows_with_empty_ids_are_left_out_and_counted(tmp_path: Path) -> None:
    data = content()
    data["samples"][2]["instruction_id"] = ""
    data["samples"][3]["agent_view_image_file"] = None
    data["samples"][5]["action_history_id"] = 0
    del data["samples"][7]["instruction_id"]
    data["samples"][8] |= {"instruction_id": None, "action_history_id": None}
    dataset = read_dataset(save(tmp_path, data))
    assert len(dataset.samples) == 19
    assert [skipped.id for skipped in dataset.skipped] == [f"samples[{index}]" for index in (2, 3, 5, 7, 8)]
    assert str(dataset.skipped[0]) == "samples[2]: no instruction_id"
    assert dataset.skipped_reasons == {
        "no instruction_id": 2,
        "no agent_view_image_file": 1,
        "no action_history_id": 1,
        "no action_history_id and no instruction_id": 1,
    }


def test_step_and_episode_zero_are_not_empty(tmp_path: Path) -> None:
    sample = read_dataset(save(tmp_path, content())).samples[0]
    assert (sample.episode, sample.timestep) == (0, 0)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"(?s)cannot read a data set.*no such file"):
        read_dataset(tmp_path / "none.json")
    with pytest.raises(DatasetError, match=r"(?s)cannot read a data set.*a folder"):
        read_dataset(tmp_path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, content())

    def denied(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(DatasetError, match=r"(?s)cannot read a data set.*Permission denied"):
        read_dataset(path)


def test_oversized_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, content())
    monkeypatch.setattr(module, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(DatasetError, match="too large"):
        read_dataset(path)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", path.stat().st_size)
    assert read_dataset(path).samples


def test_the_bound_is_256_megabytes() -> None:
    assert module.MAX_FILE_BYTES == 256_000_000


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "Expecting value"),
        ("action", "Expecting value"),
        (json.dumps(content())[:-20], "Unterminated string"),
        ('{"samples": [NaN]}', "NaN is not a JSON number"),
        ('{"samples": [-Infinity]}', "-Infinity is not a JSON number"),
        ('{"samples": [], "samples": []}', "repeated keys 'samples'"),
        ("[" * 200_000, "nested too deeply"),
        ("1" * 5000, "not JSON"),
    ],
    ids=["empty", "text", "truncated", "nan", "infinity", "repeated", "deep", "digits"],
)
def test_not_json(tmp_path: Path, text: str, word: str) -> None:
    refused(tmp_path, text, "the data set is not JSON", word)


def test_not_utf8(tmp_path: Path) -> None:
    path = save(tmp_path, content())
    path.write_bytes(path.read_bytes().replace(b"red block", b"r\xe9d block"))
    with pytest.raises(DatasetError, match=r"(?s)not JSON.*utf-8"):
        read_dataset(path)


@pytest.mark.parametrize(
    ("data", "word"),
    [([], "a list"), (3, "a number"), ("null", "null"), ({}, "keys none"), ({"frames": []}, "keys 'frames'")],
    ids=["list", "number", "null", "empty", "droid"],
)
def test_unknown_form(tmp_path: Path, data: object, word: str) -> None:
    refused(tmp_path, data, "not a data set of a known form", word)


def test_the_schema_of_the_published_readme_is_told_apart(tmp_path: Path) -> None:
    data = {
        "action_histories": [{"id": "action_0", "actions": window(0)}],
        "instructions": [{"id": "instr_0", "text": INSTRUCTIONS[0]}],
        "samples": [{"action_history_id": "action_0", "instruction_id": "instr_0", "image_path": "0.jpg"}],
    }
    refused(tmp_path, data, "known form", "action_histories is a list", "instructions is a list", "README", "generator")


def test_metadata_that_is_no_object(tmp_path: Path) -> None:
    refused(tmp_path, content() | {"_metadata": []}, "_metadata is not an object", "a list")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_window_size", 0),
        ("total_window_size", "10"),
        ("action_dim", True),
        ("action_dim", 7.0),
        ("padding_value", None),
        ("padding_value", 1e300),
        ("padding_value", 10**400),
    ],
)
def test_unusable_metadata(tmp_path: Path, key: str, value: object) -> None:
    stated = "history_length" if key == "total_window_size" else key
    data = changed(content(), "_metadata", key, to=value)
    refused(tmp_path, data, "_metadata is not usable", f"{stated} is {value!r}")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("../secret.jpg", "'..' part"),
        ("/etc/passwd", "is absolute"),
        ("a/../../secret.jpg", "'..' part"),
        ("..\\secret.jpg", "backslash"),
        ("nul\x00.jpg", "control"),
        ("linked.jpg", "link that leads out of the images folder"),
        ("linked/secret.jpg", "link that leads out of the images folder"),
        ("\u4e00" * 90 + ".jpg", "longer than 255 bytes"),
        (["0.jpg"], "image name is a list"),
    ],
)
def test_images_outside_their_folder(tmp_path: Path, name: object, word: str) -> None:
    save_images(tmp_path / "outside")
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "linked.jpg").symlink_to(tmp_path / "outside" / "0.jpg")
    (tmp_path / "data" / "images" / "linked").symlink_to(tmp_path / "outside")
    data = changed(content(), *FIRST, "agent_view_image_file", to=name)
    error = refused(tmp_path / "data", data, "contradicts itself", "samples[0]", word)
    assert len(error.found) == 1


def test_links_inside_the_images_folder_are_fine(tmp_path: Path) -> None:
    path = save(tmp_path, changed(content(), *FIRST, "agent_view_image_file", to="again.jpg"))
    (tmp_path / "images" / "again.jpg").symlink_to("0.jpg")
    assert read_dataset(path).samples[0].open().size == (32, 24)


def test_a_link_to_itself_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    path = save(tmp_path, changed(content(), *FIRST, "agent_view_image_file", to="loop.jpg"))
    (tmp_path / "images" / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(ImageError, match="no image file"):
        read_dataset(path).samples[0].open()


@pytest.mark.parametrize("name", ["..", "/tmp", "a/../..", "", 3])
def test_an_images_folder_elsewhere(tmp_path: Path, name: object) -> None:
    data = changed(content(), "_metadata", "images_folder", to=name)
    refused(tmp_path, data, "cannot tell where the images are", "beside the JSON file")


def test_an_images_folder_that_is_a_link_out(tmp_path: Path) -> None:
    save_images(tmp_path / "outside")
    path = save(tmp_path / "data", content(), images=False)
    (tmp_path / "data" / "images").symlink_to(tmp_path / "outside")
    with pytest.raises(DatasetError, match="link that leads out of the data set's folder"):
        read_dataset(path)
    assert read_dataset(path, tmp_path / "data" / "images").samples  # whoever names it, means it


def test_missing_images_folder(tmp_path: Path) -> None:
    path = save(tmp_path, content(), images=False)
    with pytest.raises(DatasetError, match="images folder does not exist"):
        read_dataset(path)
    with pytest.raises(DatasetError, match="images folder does not exist"):
        read_dataset(path, tmp_path / "none")


def test_references_to_unknown_ids(tmp_path: Path) -> None:
    data = changed(content(), *FIRST, "action_history_id", to="action_99")
    data = changed(data, "samples", 4, "instruction_id", to="instr_99")
    data = changed(data, "samples", 6, "instruction_id", to=["instr_0"])
    refused(
        tmp_path,
        data,
        "samples[0]: action_history_id 'action_99' does not exist",
        "samples[4]: instruction_id 'instr_99' does not exist",
        "samples[6]: instruction_id ['instr_0'] does not exist",
    )


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (window(0)[:9], "9 steps of 7 numbers"),
        ([row[:6] for row in window(0)], "10 steps of 6 numbers"),
        ([*window(0), window(0)[0]], "11 steps of 7 numbers"),
        ([*window(0)[:9], [0.0]], "equally long"),
        ([], "equally long"),
        ("0.5", "equally long"),
        (None, "equally long"),
        ([[*row[:6], None] for row in window(0)], "not a number"),
        ([[*row[:6], "1"] for row in window(0)], "not a number"),
        ([[*row[:6], True] for row in window(0)], "not a number"),
        ([[*row[:6], 1e39] for row in window(0)], "not finite"),
        ([[*row[:6], 10**400] for row in window(0)], "not finite"),
    ],
)
def test_windows_that_do_not_fit(tmp_path: Path, rows: object, word: str) -> None:
    data = changed(content(), "action_histories", "action_3", to=rows)
    error = refused(tmp_path, data, "action_histories['action_3']", word, "windows of 10 steps of 7 finite numbers")
    assert len(error.found) == 1


def test_numbers_too_large_for_json_are_not_finite(tmp_path: Path) -> None:
    text = json.dumps(content()).replace(str(window(2)[0][0]), "1e999", 1)
    refused(tmp_path, text, "not finite")


def test_legacy_windows_that_do_not_fit(tmp_path: Path) -> None:
    data = changed(legacy(), INSTRUCTIONS[1], "samples", 2, "action_history", to=window(0)[:5])
    data = changed(data, INSTRUCTIONS[2], "samples", to="none")
    path = save(tmp_path, data)
    with pytest.raises(DatasetError) as caught:
        read_dataset(path, tmp_path / "images")
    assert f"{INSTRUCTIONS[1]!r}.samples[2]: 5 steps of 7 numbers" in str(caught.value)
    assert f"{INSTRUCTIONS[2]!r}: samples is a string" in str(caught.value)


def test_one_bad_window_does_not_set_the_size_of_the_others(tmp_path: Path) -> None:
    data = changed(content(), "action_histories", "action_0", to=[]) | {"_metadata": {"images_folder": "images"}}
    error = refused(tmp_path, data, "action_histories['action_0']", "windows of 10 steps of 7")
    assert len(error.found) == 1


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 12)
    | st.floats(-6, 6)
    | st.sampled_from(["", "action_0", "0.jpg", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["samples", "a"]), inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([content(4), legacy(2)]), st.data())
def test_whatever_stands_in_the_file_it_is_read_or_refused(tmp_path: Path, data: Any, draw: st.DataObject) -> None:
    target = data = copy.deepcopy(data)
    while True:
        key = draw.draw(st.sampled_from(list(target) if isinstance(target, dict) else range(len(target))))
        if not isinstance(target[key], dict | list) or not target[key] or draw.draw(st.booleans()):
            break
        target = target[key]
    target[key] = draw.draw(JSON)
    path = save(tmp_path, data)
    with contextlib.suppress(DatasetError):
        assert read_dataset(path, tmp_path / "images").samples


def test_instructions_rows_and_numbers_that_are_none(tmp_path: Path) -> None:
    data = changed(content(), "instructions", "instr_1", to="  ")
    data = changed(data, "samples", 1, to="row")
    data = changed(data, "samples", 3, "timestep", to="3")
    data = changed(data, "samples", 6, "episode_id", to=1.5)
    error = refused(
        tmp_path,
        data,
        "instructions['instr_1']: '  ' is no instruction",
        "samples[1]: a string instead of an object",
        "samples[3]: timestep '3' is not a whole number",
        "samples[6]: episode_id 1.5 is not a whole number",
    )
    assert len(error.found) == 4


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    data = content() | {"instructions": {}}
    error = refused(tmp_path, data, "samples[0]", "samples[19]", "and 4 more")
    assert "samples[20]" not in str(error)


def test_no_samples(tmp_path: Path) -> None:
    refused(tmp_path, content(samples=0), "the data set has no samples")
    data = content(samples=2)
    for row in data["samples"]:
        row["instruction_id"] = ""
    refused(tmp_path, data, "the data set has no samples", "2 rows")


def test_frames_of_the_kit_are_all_used(tmp_path: Path) -> None:
    dataset = read_dataset(save(tmp_path, content()))
    assert len({sample.image for sample in dataset.samples}) == FRAMES


def test_reading_needs_no_exporter_library() -> None:
    code = (
        "import sys, trunkline.calibration.samples.dataset, trunkline.calibration.evaluation;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'open_clip', 'timm'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
