"""Windows are cut by the published rules, and where these would look into the future they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.windows_kit import CHANNELS, FORM, extracted, raw, save, stamps_of, windowed
from trunkline.calibration.windows.cut import Cut, cut
from trunkline.calibration.windows.plan import WindowPlan, every
from trunkline.calibration.windows.recording import open_recording
from trunkline.runtime.errors import DatasetError, InputError
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.window import SensorWindow, check_window


def cut_from(tmp_path: Path, arrays: dict[str, Any], plan: WindowPlan) -> Cut:
    return cut(open_recording(save(tmp_path / "r.npz", arrays)), plan)


def points(*at: float, form: SensorForm = FORM, **options: Any) -> WindowPlan:
    return WindowPlan(form, np.array(at), **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_points_against_a_slow_reference(tmp_path: Path, seed: int, adaptive: bool, padding: Any) -> None:
    arrays, rng = raw(seed=seed), np.random.default_rng(seed)
    stamps = arrays["timestamps"]
    form = replace(FORM, adaptive=adaptive, padding=padding)
    at = np.concatenate([rng.uniform(stamps[0], stamps[-1], 20), rng.choice(stamps, 5), stamps[[0, 5, -1]]])
    found = cut_from(tmp_path, arrays, WindowPlan(form, at))
    for index, moment in enumerate(at):
        expected = extracted(arrays, form, moment)
        np.testing.assert_array_equal(found.read(index), expected)
        last = int(np.searchsorted(stamps, moment))
        assert found.stamps_ns[index] == round(stamps[last] * 1e9)
        assert found.rows[index] == min(form.samples, last + 1)
        assert found.lengths[index] == len(expected)
    assert found.moments.tolist() == list(range(len(at)))
    assert found.skipped == ()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("adaptive", [False, True])
def test_intervals_against_a_slow_reference(tmp_path: Path, seed: int, adaptive: bool) -> None:
    arrays, rng = raw(seed=seed), np.random.default_rng(seed)
    stamps, form = arrays["timestamps"], replace(FORM, adaptive=adaptive)
    longest = 38 if adaptive else 90
    starts = rng.uniform(stamps[0] - 0.02, stamps[-1] - 0.2, 20)
    intervals = np.stack([starts, starts + rng.uniform(0.04, longest / 650, 20)], axis=1)
    intervals[:3, 0], intervals[:3, 1] = stamps[[10, 20, 30]], stamps[[30, 20, 68]]  # both ends belong to it
    found = cut_from(tmp_path, arrays, WindowPlan(form, intervals))
    for index, interval in enumerate(intervals):
        expected = extracted(arrays, form, interval)
        np.testing.assert_array_equal(found.read(index), expected)
        assert found.lengths[index] == len(expected)
    assert found.rows[:3].tolist() == [21, 1, 39]


def test_the_window_at_a_moment_ends_with_the_first_sample_at_or_after_it(tmp_path: Path) -> None:
    arrays = raw()
    stamps = arrays["timestamps"]
    found = cut_from(tmp_path, arrays, points(stamps[100], np.nextafter(stamps[100], np.inf)))
    assert found.stamps_ns.tolist() == [round(stamps[100] * 1e9), round(stamps[101] * 1e9)]


def test_windows_are_read_as_the_recording_has_them(tmp_path: Path) -> None:
    arrays = windowed()
    for form, shape in ((FORM, 40), (replace(FORM, samples=30), 30), (replace(FORM, samples=50), 50)):
        found = cut_from(tmp_path, arrays, WindowPlan(form))
        for index in range(12):
            rows = found.read(index)
            assert rows.shape == (shape, CHANNELS)
            np.testing.assert_array_equal(rows[-min(40, shape) :], arrays["data"][index][-min(40, shape) :])
            assert not rows[: shape - 40].any() or shape <= 40
        assert found.rows.tolist() == [min(40, shape)] * 12
        np.testing.assert_array_equal(found.stamps_ns, np.rint(arrays["timestamps"] * 1e9))


@pytest.mark.parametrize(
    ("form", "word"),
    [
        (replace(FORM, samples=30, adaptive=True), "40 samples, more than the 30"),
        (replace(FORM, samples=50, padding="none"), "40 samples, and short windows are not padded"),
    ],
)
def test_windows_of_the_wrong_length(tmp_path: Path, form: SensorForm, word: str) -> None:
    with pytest.raises(DatasetError, match=word):
        cut_from(tmp_path, windowed(), WindowPlan(form))


@pytest.mark.parametrize(
    ("at", "word"),
    [
        (999.0, "the next sample comes 1 s after the moment, so the window would be from the future"),
        (1010.0, "the recording ends 9.37"),
        (1000.308, "the next sample comes 0.0"),
    ],
    ids=["before", "after", "in a gap"],
)
def test_moments_for_which_there_are_no_samples(tmp_path: Path, at: float, word: str) -> None:
    stamps = stamps_of(400)
    stamps[200:] += 0.01
    with pytest.raises(DatasetError) as caught:
        cut_from(tmp_path, raw(timestamps=stamps), points(1000.2, at))
    assert f"window 1: {word}" in str(caught.value)
    assert "window 0" not in str(caught.value)
    found = cut_from(tmp_path, raw(timestamps=stamps), points(1000.2, at, 1000.25, skip_unusable=True))
    assert (found.moments.tolist(), len(found.skipped)) == ([0, 2], 1)
    np.testing.assert_array_equal(found.read(1), extracted(raw(timestamps=stamps), FORM, 1000.25))


def test_the_first_sample_may_be_one_sample_ahead(tmp_path: Path) -> None:
    stamps = stamps_of(400)
    found = cut_from(tmp_path, raw(timestamps=stamps), points(stamps[0] - 1 / 650, stamps[-1] + 1 / 650))
    assert found.rows.tolist() == [1, 40]


def test_what_the_encoder_would_refuse_at_run_time_is_refused_here(tmp_path: Path) -> None:
    """For gaps of every length, the cut and ``check_window`` are of one mind."""
    refused = 0
    for lost in range(6):
        arrays = raw()
        arrays = {name: np.delete(array, range(200, 200 + lost), axis=0) for name, array in arrays.items()}
        at = arrays["timestamps"][220]
        lenient = cut_from(tmp_path, arrays, points(at, form=replace(FORM, samples=15)))  # begins behind the gap
        assert lenient.missing.tolist() == [0]
        window = SensorWindow(extracted(arrays, FORM, at), 650.0, missing=lost)
        try:
            check_window(window, FORM)
        except Exception:
            refused += 1
            with pytest.raises(DatasetError, match=f"window 0: gaps that swallowed {lost} samples"):
                cut_from(tmp_path, arrays, points(at))
        else:
            assert cut_from(tmp_path, arrays, points(at)).missing.tolist() == [lost]
    assert refused == 3


def test_short_windows_where_nothing_is_padded(tmp_path: Path) -> None:
    form = replace(FORM, padding="none")
    with pytest.raises(DatasetError, match="window 0: 11 samples, and short windows are not padded"):
        cut_from(tmp_path, raw(), points(raw()["timestamps"][10], form=form))
    assert cut_from(tmp_path, raw(), points(raw()["timestamps"][39], form=form)).rows.tolist() == [40]


@pytest.mark.parametrize(
    ("interval", "word"),
    [((1000.3001, 1000.3002), "no samples"), ((1000.1, 1000.4), "more than the 40 of the longest window")],
)
def test_intervals_that_are_no_windows(tmp_path: Path, interval: tuple[float, float], word: str) -> None:
    arrays = raw(timestamps=1000 + np.arange(400) / 650)
    plan = WindowPlan(replace(FORM, adaptive=True), np.array([interval]))
    with pytest.raises(DatasetError, match=word):
        cut_from(tmp_path, arrays, plan)


def test_all_unusable_windows_are_listed_and_nothing_is_left_to_skip(tmp_path: Path) -> None:
    plan = points(*np.linspace(2000, 3000, 80), skip_unusable=True)
    with pytest.raises(DatasetError, match=r"(?s)window 0: .*window 49: .*and 30 more"):
        cut_from(tmp_path, raw(), plan)


@pytest.mark.parametrize(
    ("arrays", "plan", "word"),
    [
        (raw(), points(1000.2, form=replace(FORM, channels=1026)), "other channels"),
        (raw(), points(1000.2, form=replace(FORM, rate_hz=65.0)), "another rate"),
        (raw(), WindowPlan(FORM), "needs moments or intervals"),
        (windowed(), points(1000.2), "cannot be cut again"),
        (windowed(), WindowPlan(replace(FORM, channels=4)), "other channels"),
        (windowed(), WindowPlan(replace(FORM, rate_hz=640.0, samples=40)), None),
        (windowed(), WindowPlan(replace(FORM, rate_hz=600.0)), "another rate"),
    ],
)
def test_plans_for_another_recording(
    tmp_path: Path, arrays: dict[str, Any], plan: WindowPlan, word: str | None
) -> None:
    if word is None:
        assert len(cut_from(tmp_path, arrays, plan).rows) == 12
        return
    with pytest.raises(DatasetError, match=word):
        cut_from(tmp_path, arrays, plan)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (WindowPlan(replace(FORM, channels=0, rate_hz=-1.0), np.zeros(0)), ["channels is 0", "rate_hz", "0 times"]),
        (WindowPlan(replace(FORM, padding="both", resample="spline")), ["padding is 'both'", "resample is 'spline'"]),
        (WindowPlan(FORM, np.zeros((3, 3))), ["times are float64 (3, 3)"]),
        (WindowPlan(FORM, np.zeros(3, np.float32)), ["times are float32 (3,)"]),
        (WindowPlan(FORM, np.array([1.0, np.nan])), ["NaN"]),
        (WindowPlan(FORM, np.array([[1.0, 2.0], [3.0, 2.0]])), ["interval 1 ends before it begins"]),
        (WindowPlan(FORM, None, (40, 40), "float64"), ["resolutions are (40, 40)", "storage is 'float64'"]),
        (WindowPlan(FORM, None, (-1,)), ["resolutions are (-1,)"]),
        (WindowPlan(FORM, None, (65.0,)), ["resolutions are (65.0,)"]),
    ],
)
def test_plans_that_are_none(plan: WindowPlan, words: list[str]) -> None:
    with pytest.raises(InputError, match="windows cannot be cut like this") as caught:
        plan.require()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_moments_at_equal_distances(tmp_path: Path) -> None:
    stamps = 1000 + np.arange(400) / 650
    found = every(stamps, FORM, 0.1)
    assert found[0] == pytest.approx(stamps[39])
    np.testing.assert_allclose(np.diff(found), 0.1)
    assert stamps[-1] - 0.1 < found[-1] <= stamps[-1]
    windows = cut_from(tmp_path, raw(timestamps=stamps), WindowPlan(FORM, found))
    assert set(windows.rows.tolist()) == {40}


@pytest.mark.parametrize(("count", "seconds"), [(400, 0.0), (400, -1.0), (39, 0.1), (400, 1e-12), (400, np.nan)])
def test_distances_that_give_no_moments(count: int, seconds: float) -> None:
    with pytest.raises(InputError, match="no moments to cut windows at"):
        every(1000 + np.arange(count) / 650, FORM, seconds)
