"""The node: scores candidate actions on the newest image, under ROS 2 or on simulated messages.

    ros2 run trunkline_ros trunkline_node --ros-args -p bundle:=/srv/trunkline/current
    python -m trunkline_ros.trunkline_node --stub --bundle BUNDLE --seconds 10

Without ROS 2 the second form is what runs, and stderr says so: messages are simulated, and decisions go to stdout.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from dataclasses import replace

from trunkline.runtime import load
from trunkline.runtime.ensemble import Decision
from trunkline.runtime.errors import TrunklineError
from trunkline_ros.judge import PARAMETERS, Judge, Settings
from trunkline_ros.stub import World

INTERRUPTED = 130
STUB_INSTRUCTION = "put the red block in the bowl"


def main(words: list[str] | None = None) -> int:
    """Runs the node; the exit code is that of the trunkline command."""
    parser = _parser()
    arguments, others = parser.parse_known_args(words)
    given = {name: value for name in PARAMETERS if (value := getattr(arguments, name)) is not None}
    absent = importlib.util.find_spec("rclpy") is None
    simulated = arguments.stub or absent
    if simulated and others:
        parser.error(f"these mean nothing without ROS: {' '.join(others)}")
    if given and not simulated:
        parser.error(f"under ROS these are parameters, such as --ros-args -p {next(iter(given))}:=...")
    try:
        if simulated:
            _say_simulated("asked for" if arguments.stub else "ROS 2 is not here (no module rclpy)")
            run_simulated(Settings(**given), arguments.seconds)
        else:
            from trunkline_ros import ros

            ros.run(others, arguments.seconds)
    except TrunklineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trunkline_node", description="Score candidate actions on the newest image.", allow_abbrev=False
    )
    parser.add_argument("--stub", action="store_true", help="simulate the messages, also where there is ROS")
    parser.add_argument("--seconds", type=float, help="how long; by default until it is interrupted")
    for name, default in PARAMETERS.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), help=f"simulated only: the parameter {name}")
    return parser


def run_simulated(settings: Settings, seconds: float | None) -> None:
    """Scores random candidates on random images."""
    with load(settings.bundle, backend=settings.backend or None) as ensemble:
        actions = ensemble.bundle.manifest.actions
        ready = replace(settings, instruction=settings.instruction or STUB_INSTRUCTION)
        judge = Judge(ensemble, ready, _show, ros_now_ns=time.time_ns)
        with World(judge, actions.history_length, actions.action_dim, ready.instruction):
            judge.run(seconds)
    status = judge.status()
    print(status.summary)
    for name, value in status.values.items():
        print(f"  {name}: {value}")


def _show(decision: Decision, label: str) -> None:
    score, spread = decision.scores[decision.best], decision.disagreement[decision.best]
    print(f"candidates {label}: best {decision.best}, score {score:+.4f}, disagreement {spread:.4f}", flush=True)


def _say_simulated(why: str) -> None:
    print(f"SIMULATED: {why}; images and candidates are random, nothing is published", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
