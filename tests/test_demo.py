"""The demo world: what its hand feels, the files it writes, and that members which feel decide better."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "demo"))

from dataset import samples, write_dataset
from evaluate import HERE as DEMO
from evaluate import Seen, pools, read_members, read_samples, scores, top_one, variants
from touch import FORM, LEAD_S, Inside, Touched, a_scan, contact_force, make_touched
from world import holds, make_episode

from trunkline.exporter.checkpoint.read import read_checkpoint

SECOND = round(FORM.rate_hz)
HOP = round(FORM.rate_hz / 5)


@pytest.fixture(scope="module")
def touched() -> Touched:
    return make_touched("held-out", 31, 4)[0]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Seen, torch.Tensor]:
    path = write_dataset(tmp_path_factory.mktemp("demo"), 120, 31, sensor=True)
    with torch.inference_mode():
        return read_samples(path, DEMO / "trunk")


def test_episodes_without_a_sensor_stay_what_they_were() -> None:
    sample = next(samples("held-out", 7, 1))
    assert (sample.instruction, sample.timestep) == ("bring the yellow ball to the left side of the table", 3)
    expected = [-0.000511, -0.000575, -0.031833, -0.006235, -0.004447, -0.005173, 1.0]
    np.testing.assert_allclose(sample.window[6], expected, atol=2e-6)


def test_scene_and_task_are_those_of_the_episode_without_a_sensor(touched: Touched) -> None:
    plain, _ = make_episode("held-out", 31, 4)
    assert touched.episode.scenes[0] == plain.scenes[0]
    assert touched.episode.task == plain.task


def test_an_episode_is_a_function_of_its_numbers(touched: Touched) -> None:
    again, _ = make_touched("held-out", 31, 4)
    assert again.inside == touched.inside
    assert again.stream.tobytes() == touched.stream.tobytes()


def test_windows_are_cut_from_one_stream(touched: Touched) -> None:
    windows = [touched.window(at) for at in range(len(touched.episode.scenes))]
    assert {window.shape for window in windows} == {(FORM.samples, FORM.channels)}
    for before, after in itertools.pairwise(windows):
        np.testing.assert_array_equal(before[HOP:], after[:-HOP])
    np.testing.assert_array_equal(windows[-1][-1], touched.stream[-1])


def test_force_and_layer_are_there_only_in_contact(touched: Touched) -> None:
    held = [holds(scene, touched.episode.task.target) for scene in touched.episode.scenes]
    first = held.index(True)
    start = round(LEAD_S * FORM.rate_hz) + (first - 1) * HOP
    before, during = touched.stream[: start + 1], touched.stream[start + HOP : start + HOP + SECOND]
    assert during[:, 0].mean() - before[:, 0].mean() > 3
    assert during[:, 8:16].std() > 2 * before[:, 8:16].std()
    np.testing.assert_allclose(during[:, 1].mean(), before[:, 1].mean(), atol=0.2)  # the probe rings anyway


def test_the_ripple_tells_firmness_and_its_level_does_not() -> None:
    time, contact = np.arange(SECOND) / FORM.rate_hz, np.ones(SECOND)
    felt = [[contact_force(time, contact, firm, np.random.default_rng(seed)) for seed in range(20)] for firm in (0, 1)]
    ripple, level = np.std(felt, axis=2), np.mean(felt, axis=2)
    assert ripple[0].max() < ripple[1].min()
    assert abs(np.diff(level.mean(axis=1))[0]) < 0.1


def depth_of_the_layer(slant: float, seed: int) -> np.ndarray:
    """(samples,) where most of the energy between ringing and back wall is."""
    time, contact = np.arange(SECOND) / FORM.rate_hz, np.ones(SECOND)
    energy = np.maximum(a_scan(time, contact, slant, np.random.default_rng(seed))[:, 5:18] ** 2 - 0.05, 0)
    energy = np.apply_along_axis(lambda row: np.convolve(row, np.ones(5), "same"), 0, energy)
    return (energy * np.arange(5, 18)).sum(axis=1) / energy.sum(axis=1)


def test_the_echo_moves_with_the_slant_and_stands_anywhere() -> None:
    depths = np.array([[depth_of_the_layer(slant, seed) for slant in (-0.5, 0, 0.5)] for seed in range(20)])
    opposite = [np.corrcoef(one, other)[0, 1] for one, _, other in depths]
    assert np.mean(opposite) < -0.4
    moved = depths.std(axis=2).mean(axis=0)
    assert min(moved[0], moved[2]) > 1.5 * moved[1]
    stands = depths.mean(axis=2)
    assert np.ptp(stands[:, 1]) > 3 * np.abs(stands[:, 0] - stands[:, 2]).mean()


def test_the_expert_turns_what_it_holds_as_its_inside_demands(touched: Touched) -> None:
    held = np.array([holds(scene, touched.episode.task.target) for scene in touched.episode.scenes])
    carried = np.flatnonzero(held)[3:12]
    roll, pitch = touched.episode.actions[carried, 3:5].mean(axis=0)
    assert roll == pytest.approx(-touched.inside.slant / 20, abs=0.005)
    assert pitch == pytest.approx(0.6 * (1 - touched.inside.firmness) / 20, abs=0.005)
    assert Inside(0.0, 1.0).tilt.pitch == 0


def test_a_data_set_names_its_windows(tmp_path: Path) -> None:
    content = json.loads(write_dataset(tmp_path, 3, 31, sensor=True).read_text())
    assert content["_metadata"]["sensor"] == {"file": "sensor.npz", "rate_hz": FORM.rate_hz}
    assert [row["sensor_window"] for row in content["samples"]] == [0, 1, 2]
    with np.load(tmp_path / "sensor.npz") as arrays:
        assert {name: (arrays[name].dtype, arrays[name].shape) for name in arrays.files} == {
            "timestamps": (np.float64, (3,)),
            "data": (np.float32, (3, FORM.samples, FORM.channels)),
        }
        assert (np.diff(arrays["timestamps"]) > 0).all()


def test_a_data_set_without_a_sensor_says_nothing_of_one(tmp_path: Path) -> None:
    content = json.loads(write_dataset(tmp_path, 2, 31).read_text())
    assert "sensor" not in content["_metadata"]
    assert all("sensor_window" not in row for row in content["samples"])
    assert not (tmp_path / "sensor.npz").exists()


def test_members_state_the_stream_they_were_trained_on() -> None:
    for file in (DEMO / "sensor_members").glob("*.safetensors"):
        (member,) = read_checkpoint(file).members
        assert member.settings.sensor == FORM
        assert member.shape.sensor is not None
        assert member.shape.sensor.absent


@torch.inference_mode()
def test_the_sensor_decides_what_pictures_leave_open(seen: tuple[Seen, torch.Tensor]) -> None:
    given, windows = seen
    members, choices = [*read_members(DEMO / "sensor_members").values()], pools(len(windows))
    others = {name: top_one(scores(members, other, windows), choices) for name, other in variants(given)}
    right = top_one(scores(members, given, windows), choices)
    assert right > 80
    assert right > others["no sensor"] + 8
    assert others["no sensor"] > others["other sensor"]  # a missing sensor is no zero taken for data
    # The force carries most; of 120 samples the A-scan alone decides about nine.
    assert all(other < right - 4 for name, other in others.items())
