"""The ROS 2 example: its node on simulated messages, its connection to a pretended ROS, its package."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "ros2"))

from trunkline_ros import trunkline_node
from trunkline_ros.judge import PARAMETERS, Judge, Settings
from trunkline_ros.messages import ROWS, image_array
from trunkline_ros.stub import Image, String, candidates_message, image_message, time_of

from tests import pretended_ros
from tests.bundles import frame, windows
from trunkline.runtime import Ensemble, load
from trunkline.runtime.errors import InputError
from trunkline.runtime.loop import SimulatedClock

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "ros2"
SECOND, TENTH = 1_000_000_000, 100_000_000
AHEAD = 1_700_000_000 * SECOND  # of ROS time before the monotonic clock
INSTRUCTION = "put the red block in the bowl"


class Scene:
    """A judge in simulated time, and a world around it. What the world asserts fails the test."""

    def __init__(self, ensemble: Any, **settings: Any) -> None:
        self.clock, self.ahead_ns = SimulatedClock(SECOND), AHEAD
        self.published: list[tuple[str, Any]] = []
        self.judge = Judge(
            ensemble,
            Settings(**{"instruction": INSTRUCTION, **settings}),
            lambda decision, label: self.published.append((label, decision)),
            ros_now_ns=self.ros_now_ns,
            clock=self.clock,
        )

    def ros_now_ns(self) -> int:
        return self.clock.now_ns() + self.ahead_ns

    def image(self, seed: int, *, age_ns: int = 0) -> None:
        self.judge.on_image(image_message(frame(seed), self.ros_now_ns() - age_ns))

    def candidates(self, seed: int, label: str | None = None) -> None:
        self.judge.on_candidates(candidates_message(windows(5, seed), str(seed) if label is None else label))

    def run(self, world: Callable[[], None], seconds: float = 2) -> Any:
        failures = []

        def body() -> None:
            try:
                world()
            except BaseException as failure:
                failures.append(failure)

        self.clock.start("world", body)
        report = self.judge.run(seconds)
        for failure in failures:
            raise failure
        return report

    def spend(self, nanoseconds: int) -> None:
        self.clock.spend(nanoseconds)

    def usual(self) -> None:
        """An image each tenth of a second; candidates once, after the second one."""
        for number in range(10):
            self.image(number)
            if number == 1:
                self.candidates(7)
            self.spend(TENTH)

    @property
    def values(self) -> dict[str, str]:
        return self.judge.status().values


def test_decisions_are_the_ensembles_own(ensemble: Ensemble) -> None:
    scene = Scene(ensemble)

    def world() -> None:
        for number in range(5):
            pixels = frame(number)
            stamp = scene.ros_now_ns()
            scene.judge.on_image(image_message(pixels[:, :, ::-1], stamp, encoding="bgr8", spare=number))
            scene.spend(TENTH)  # encoded
            scene.candidates(number)
            scene.spend(TENTH)  # decided

    report = scene.run(world)
    assert [label for label, _ in scene.published] == ["0", "1", "2", "3", "4"]
    for number, (_, decision) in enumerate(scene.published):
        expected = ensemble.score(frame(number), INSTRUCTION, windows(5, number))
        assert np.array_equal(decision.scores, expected.scores)
        assert np.array_equal(decision.disagreement, expected.disagreement)
        assert decision.best == expected.best
    assert report.decided == 5
    assert scene.judge.status().healthy


def test_a_new_instruction_holds_from_the_next_decision(ensemble: Ensemble) -> None:
    scene = Scene(ensemble, instruction="")

    def world() -> None:
        scene.image(0)
        scene.candidates(1)
        scene.spend(2 * TENTH)
        assert scene.published == []
        scene.judge.on_instruction(String("  "))
        scene.judge.on_instruction(String("open the drawer"))
        scene.spend(2 * TENTH)

    scene.run(world)
    ((_, decision),) = scene.published
    assert np.array_equal(decision.scores, ensemble.score(frame(0), "open the drawer", windows(5, 1)).scores)
    assert scene.values["refused: instruction"] == "1"
    assert int(scene.values["refused: no instruction"]) >= 1


@pytest.mark.parametrize(("encoding", "spare"), [("rgb8", 0), ("rgb8", 5), ("bgr8", 0), ("bgr8", 64)])
@pytest.mark.parametrize("big_endian", [0, 1])
def test_rows_may_be_longer_than_their_pixels(encoding: str, spare: int, big_endian: int) -> None:
    pixels = frame(3)
    sent = pixels if encoding == "rgb8" else pixels[:, :, ::-1]
    message = replace(image_message(sent, SECOND, encoding, spare), is_bigendian=big_endian)
    assert np.array_equal(image_array(message), pixels)


SPOILT_IMAGES: dict[str, Callable[[Image], Any]] = {
    "found: 'mono8'": lambda image: replace(image, encoding="mono8"),
    "found: 'rgba8'": lambda image: replace(image, encoding="rgba8"),
    "found: ''": lambda image: replace(image, encoding=""),
    "step 179": lambda image: replace(image, step=179),
    "7199 bytes": lambda image: replace(image, data=image.data[:-1]),
    "7201 bytes": lambda image: replace(image, data=image.data + b"x"),
    "height 41": lambda image: replace(image, height=41),
    "width 0": lambda image: replace(image, width=0),
    "found: 0 s and 0 ns": lambda image: replace(image, header=replace(image.header, stamp=time_of(0))),
    "found: 20.0 ms ahead": lambda image: replace(
        image, header=replace(image.header, stamp=time_of(SECOND + AHEAD + 20_000_000))
    ),
}


@pytest.mark.parametrize("fragment", SPOILT_IMAGES)
def test_a_spoilt_image_is_refused_by_name(ensemble: Ensemble, fragment: str) -> None:
    scene = Scene(ensemble)
    scene.judge.on_image(SPOILT_IMAGES[fragment](image_message(frame(0), SECOND + AHEAD)))
    assert fragment in scene.values["last refusal"]
    scene.run(lambda: scene.candidates(1), seconds=0.5)
    assert scene.values["refused: image"] == "1"
    assert "ticks refused: no frame" in scene.values
    assert scene.published == []


def dimensions(*values: tuple[int, int]) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        message.layout.dim = message.layout.dim[: len(values)]
        for each, (size, stride) in zip(message.layout.dim, values, strict=True):
            each.size, each.stride = size, stride

    return change


SPOILT_CANDIDATES: dict[str, Callable[[Any], Any]] = {
    "sizes (5, 70)": dimensions((5, 350), (70, 70)),
    "sizes ()": dimensions(),
    "strides [350, 70, 1]": dimensions((5, 350), (10, 70), (7, 1)),
    "sizes (0, 10, 7)": dimensions((0, 0), (10, 70), (7, 7)),
    "offset 1": lambda message: setattr(message.layout, "data_offset", 1),
    "349 numbers": lambda message: message.data.pop(),
    "found: (5, 14, 5)": dimensions((5, 350), (14, 70), (5, 5)),
    "found: (7, 50, 1)": dimensions((7, 350), (50, 50), (1, 1)),
    "candidate 0: NaN or infinite values": lambda message: message.data.__setitem__(0, float("nan")),
}


@pytest.mark.parametrize("fragment", SPOILT_CANDIDATES)
def test_spoilt_candidates_are_refused_by_name(ensemble: Ensemble, fragment: str) -> None:
    scene = Scene(ensemble)
    message = candidates_message(windows(5), "spoilt")
    SPOILT_CANDIDATES[fragment](message)

    def world() -> None:
        scene.image(0)
        scene.spend(TENTH)
        scene.judge.on_candidates(message)
        scene.spend(3 * TENTH)
        assert fragment in scene.values["last refusal"]
        scene.image(1)
        scene.candidates(1, "sound")
        scene.spend(TENTH)

    report = scene.run(world)
    assert [label for label, _ in scene.published] == ["sound"]
    named = int(scene.values.get("refused: candidates", 0)) + report.refused.get("error", 0)
    assert named == 1  # scored once, not at every tick


def test_candidates_wait_for_an_image(ensemble: Ensemble) -> None:
    scene = Scene(ensemble)

    def world() -> None:
        scene.candidates(1, "replaced")
        scene.candidates(2, "newest")
        scene.spend(3 * TENTH)
        scene.image(1)

    scene.run(world)
    assert [label for label, _ in scene.published] == ["newest"]


def test_old_candidates_are_dropped(ensemble: Ensemble) -> None:
    scene = Scene(ensemble, candidates_bound_ms=300.0)

    def world() -> None:
        scene.candidates(1)
        scene.spend(4 * TENTH)
        scene.image(1)

    report = scene.run(world)
    assert scene.published == []
    assert report.decided == 0
    assert scene.values["refused: candidates too old"] == "1"
    assert scene.values["last refusal"] == "candidates older than 300 ms"


def test_an_old_image_is_no_ground_for_a_decision(ensemble: Ensemble) -> None:
    scene = Scene(ensemble)

    def world() -> None:
        scene.image(1, age_ns=6 * TENTH)
        scene.candidates(1)
        scene.spend(2 * TENTH)
        assert scene.values["last refusal"] == "frame too old"

    scene.run(world)
    assert scene.published == []


@pytest.mark.parametrize("second", [SECOND, -SECOND])
def test_a_clock_that_is_set_does_not_touch_what_has_arrived(ensemble: Ensemble, second: int) -> None:
    scene = Scene(ensemble)

    def world() -> None:
        scene.image(1)
        scene.spend(TENTH)
        stamped = image_message(frame(2), scene.ros_now_ns())
        scene.ahead_ns += second
        scene.judge.on_image(stamped)  # a second old by the clock, or one ahead of it
        scene.candidates(1, "on the first")
        scene.spend(TENTH)
        scene.image(3)
        scene.spend(TENTH)
        scene.candidates(1, "on the third")
        scene.spend(TENTH)

    scene.run(world)
    (_, first), (_, third) = scene.published
    for decision, seed in ((first, 1), (third, 3)):
        assert np.array_equal(decision.scores, ensemble.score(frame(seed), INSTRUCTION, windows(5, 1)).scores)
    assert ("refused: image" in scene.values) == (second < 0)


def test_an_image_that_was_overtaken_is_not_used(ensemble: Ensemble) -> None:
    scene = Scene(ensemble)

    def world() -> None:
        scene.image(1)
        scene.image(2, age_ns=TENTH)
        scene.spend(TENTH)
        scene.candidates(1)

    scene.run(world)
    ((_, decision),) = scene.published
    assert np.array_equal(decision.scores, ensemble.score(frame(1), INSTRUCTION, windows(5, 1)).scores)


class Slow:
    """An ensemble whose scores take 150 ms."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble, self.spend = ensemble, lambda nanoseconds: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ensemble, name)

    def score(self, *arguments: Any, **named: Any) -> Any:
        self.spend(TENTH + TENTH // 2)
        return self.ensemble.score(*arguments, **named)


def test_late_decisions_are_not_published(ensemble: Ensemble) -> None:
    slow = Slow(ensemble)
    scene = Scene(slow)
    slow.spend = scene.spend
    report = scene.run(scene.usual)
    assert scene.published == []
    status = scene.judge.status()
    assert int(status.values["late, not published"]) == report.late > 1
    assert (status.healthy, status.summary[:30]) == (False, "0 decisions on 1 candidates me")
    assert scene.judge.status().healthy  # nothing was asked since then


def test_candidates_that_grew_old_while_they_were_scored_are_dropped(ensemble: Ensemble) -> None:
    slow = Slow(ensemble)
    scene = Scene(slow, instruction="", scoring_hz=1.0, candidates_bound_ms=100.0)
    slow.spend = scene.spend

    def world() -> None:
        scene.judge.on_instruction(String(INSTRUCTION))
        scene.spend(9 * TENTH + TENTH // 2)
        scene.image(1)
        scene.candidates(1)

    report = scene.run(world)
    assert (report.decided, report.late, scene.published) == (1, 0, [])
    assert scene.values["refused: candidates too old"] == "1"


def test_a_camera_that_repeats_its_image_is_dead(ensemble: Ensemble) -> None:
    scene = Scene(ensemble)

    def world() -> None:
        for number in range(10):
            scene.image(0)
            if number == 8:
                scene.candidates(1)
            scene.spend(TENTH)
        status = scene.judge.status()
        assert not status.healthy
        assert status.summary == "0 decisions on 1 candidates messages; last refusal: frame too old"
        assert status.values["images that repeat the one before"] == "9"

    scene.run(world)
    assert scene.published == []


def test_a_bundle_with_a_sensor_is_refused(sensor_bundle: Path) -> None:
    with (
        load(sensor_bundle, backend="onnxruntime") as felt,
        pytest.raises(InputError, match="no topic for a fast sensor"),
    ):
        Scene(felt)


def simulated(bundle: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trunkline_ros.trunkline_node", "--bundle", str(bundle), *words]
    return subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [[], ["--stub"]])
def test_without_ros_it_says_so_and_decides(bundle: Path, words: list[str]) -> None:
    done = simulated(bundle, "--seconds", "2", *words)
    assert done.returncode == 0, done.stderr
    assert ("SIMULATED: asked for" if words else "SIMULATED: ROS 2 is not here") in done.stderr
    assert re.search(r"^candidates \d+: best \d+, score [+-]0\.\d{4}", done.stdout, re.MULTILINE)


def test_errors_are_those_of_trunkline(tmp_path: Path) -> None:
    done = simulated(tmp_path / "missing", "--seconds", "1")
    assert done.returncode == 4
    assert "cannot open a bundle" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_ros_would_read_is_not_ignored_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        trunkline_node.main(["--ros-args", "-p", "bundle:=here"])
    assert "mean nothing without ROS: --ros-args -p bundle:=here" in capsys.readouterr().err


QOS = {"image": ("BEST_EFFORT", "VOLATILE"), "candidates": ("RELIABLE", "VOLATILE")}
QOS["instruction"] = ("RELIABLE", "TRANSIENT_LOCAL")


def test_under_ros_topics_are_wired(bundle: Path, ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"bundle": str(bundle), "instruction": INSTRUCTION, "frame_bound_ms": 6e4, "candidates_bound_ms": 6e4}
    node = pretended_ros.Node(parameters, time.time_ns)

    def spin(node: pretended_ros.Node) -> None:
        send = {topic: callback for topic, (_, callback, _) in node.subscriptions.items()}
        send["instruction"](String(INSTRUCTION))
        send["image"](image_message(frame(1), time.time_ns()))
        send["candidates"](candidates_message(windows(5, 2), "17"))
        assert node.publishers["~/best"].came.wait(60)
        for report in node.timers:
            report()

    called = pretended_ros.install(monkeypatch, node, spin)
    assert trunkline_node.main(["--ros-args", "-r", "__node:=scorer"]) == 0
    assert called == ["init ['--ros-args', '-r', '__node:=scorer']", "executor shut down", "shut down"]
    assert node.declared == PARAMETERS
    assert node.destroyed
    for topic, (kind, _, qos) in node.subscriptions.items():
        policies = qos.policies
        assert (policies["reliability"].name, policies["durability"].name) == QOS[topic]
        assert (policies["history"].name, policies["depth"]) == ("KEEP_LAST", 1)
        assert kind.__name__ == {"image": "Image", "candidates": "Float32MultiArray", "instruction": "String"}[topic]
    expected = ensemble.score(frame(1), INSTRUCTION, windows(5, 2))
    (decision,) = node.publishers["~/decision"].messages
    rows, columns = decision.layout.dim
    assert [(rows.label, rows.size, rows.stride), (columns.label, columns.size, columns.stride)] == [
        (ROWS, 2, 10),
        ("17", 5, 5),
    ]
    assert np.array_equal(np.float32(decision.data), np.concatenate([expected.scores, expected.disagreement]))
    assert [message.data for message in node.publishers["~/best"].messages] == [expected.best]
    assert node.publishers["~/decision"].qos.policies["lifespan"].nanoseconds == TENTH
    (status,) = node.publishers["/diagnostics"].messages[-1].status
    assert (status.level, status.message) == (b"\0", "1 decisions on 1 candidates messages")
    assert {each.key: each.value for each in status.values}["decisions"] == "1"


def test_a_failure_in_a_callback_ends_the_node(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(node: pretended_ros.Node) -> None:
        raise ZeroDivisionError("in a callback")

    called = pretended_ros.install(monkeypatch, pretended_ros.Node({"bundle": str(bundle)}, time.time_ns), spin)
    with pytest.raises(ZeroDivisionError):
        trunkline_node.main([])
    assert called[-1] == "shut down"


def test_simulated_time_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = pretended_ros.Node({"bundle": str(bundle), "use_sim_time": True}, time.time_ns)
    pretended_ros.install(monkeypatch, node, lambda node: None)
    assert trunkline_node.main([]) == 1
    assert "does not run on simulated time" in capsys.readouterr().err


def test_under_ros_parameters_are_not_options(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended_ros.install(monkeypatch, pretended_ros.Node({}, time.time_ns), lambda node: None)
    with pytest.raises(SystemExit):
        trunkline_node.main(["--bundle", "here"])


def test_the_package_is_whole() -> None:
    package = ElementTree.parse(EXAMPLE / "package.xml").getroot()
    setup = (EXAMPLE / "setup.py").read_text()
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert package.findtext("version") == version.group(1)
    assert f'version="{version.group(1)}"' in setup
    assert package.findtext("name") == "trunkline_ros"
    for name in ("resource/trunkline_ros", "launch/trunkline.launch.py", "trunkline_ros/trunkline_node.py"):
        assert (EXAMPLE / name).is_file()
    imported = {line.split()[1].partition(".")[0] for line in _lines("trunkline_ros/ros.py", "from ", "import ")}
    foreign = imported - set(sys.stdlib_module_names) - {"trunkline", "trunkline_ros"}
    assert foreign <= {each.text for each in package.iter("exec_depend")}


def test_the_launch_file_names_parameters_and_topics_that_there_are() -> None:
    tree = ast.parse((EXAMPLE / "launch" / "trunkline.launch.py").read_text())
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert set(constants["NAMES"]) <= set(PARAMETERS)
    assert set(constants["TOPICS"]) == set(QOS)


def _lines(name: str, *starts: str) -> list[str]:
    return [line for line in (EXAMPLE / name).read_text().splitlines() if line.startswith(starts)]


def test_nothing_but_the_connection_imports_ros() -> None:
    code = "import sys; sys.modules['rclpy'] = None; import trunkline_ros.trunkline_node, trunkline_ros.judge"
    subprocess.run([sys.executable, "-c", code], cwd=EXAMPLE, env=dict(os.environ), check=True)
