"""The node's connection to ROS 2: topics, parameters, time. The only module that imports it.

**Never run under a real ROS 2**: a test gives it a pretended one.
"""

from __future__ import annotations

import threading
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Float32MultiArray, Int32, MultiArrayDimension, String

from trunkline.runtime import load
from trunkline.runtime.ensemble import Decision
from trunkline.runtime.errors import InputError
from trunkline_ros.judge import PARAMETERS, Judge, Settings, Status
from trunkline_ros.messages import fill_decision

STATUS_PERIOD_S, SHUTDOWN_S = 1.0, 5.0


def newest(*, reliable: bool, kept: bool = False, lifespan: Duration | None = None) -> QoSProfile:
    """The newest message and no other; ``kept`` for whoever comes later, too."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if kept else DurabilityPolicy.VOLATILE,
        **({} if lifespan is None else {"lifespan": lifespan}),
    )


class RosNode:
    """Topics in and out of a :class:`Judge`.

    Threads: callbacks come from the thread that spins, decisions are published from the one that runs the judge.
    """

    def __init__(self, node: Any) -> None:
        """Declares the parameters.

        Raises:
            InputError: ROS time is simulated.
        """
        self.node = node
        self.settings = Settings(
            **{name: node.declare_parameter(name, value).value for name, value in PARAMETERS.items()}
        )
        if node.get_parameter("use_sim_time").value:
            raise InputError(
                "this node does not run on simulated time",
                where="use_sim_time",
                found=True,
                fix="set it to false: ages and bounds are those of real time",
            )
        # What could not be delivered within a period is late, and must not be delivered then.
        fresh = newest(reliable=True, lifespan=Duration(nanoseconds=self.settings.plan.deadline_ns))
        self._decision = node.create_publisher(Float32MultiArray, "~/decision", fresh)
        self._best = node.create_publisher(Int32, "~/best", fresh)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def connect(self, judge: Judge) -> None:
        """Subscribes; from now on messages reach the judge."""
        subscribe = self.node.create_subscription
        subscribe(Image, "image", judge.on_image, newest(reliable=False))
        subscribe(Float32MultiArray, "candidates", judge.on_candidates, newest(reliable=True))
        subscribe(String, "instruction", judge.on_instruction, newest(reliable=True, kept=True))
        self.node.create_timer(STATUS_PERIOD_S, lambda: self.report(judge.status()))

    def now_ns(self) -> int:
        """ROS time."""
        return int(self.node.get_clock().now().nanoseconds)

    def publish(self, decision: Decision, label: str) -> None:
        """Scores and disagreement in one message, and the winner's index."""
        self._decision.publish(fill_decision(Float32MultiArray(), MultiArrayDimension, decision, label))
        self._best.publish(Int32(data=decision.best))

    def report(self, status: Status) -> None:
        """On /diagnostics."""
        message = DiagnosticArray()
        message.header.stamp = self.node.get_clock().now().to_msg()
        message.status = [
            DiagnosticStatus(
                level=DiagnosticStatus.OK if status.healthy else DiagnosticStatus.WARN,
                name=f"{self.node.get_name()}: decisions",
                message=status.summary,
                hardware_id=self.settings.bundle,
                values=[KeyValue(key=key, value=value) for key, value in status.values.items()],
            )
        ]
        self._diagnostics.publish(message)


def run(arguments: list[str], seconds: float | None = None) -> None:
    """Runs the node until ROS is shut down, or for so long.

    Raises:
        TrunklineError: a parameter, the bundle or the back end cannot be used.
    """
    rclpy.init(args=arguments)
    try:
        node = rclpy.create_node("trunkline")
        ros = RosNode(node)
        with load(ros.settings.bundle, backend=ros.settings.backend or None) as ensemble:
            judge = Judge(ensemble, ros.settings, ros.publish, ros_now_ns=ros.now_ns)
            ros.connect(judge)
            _spin_beside(node, judge, seconds)
        node.destroy_node()
    finally:
        rclpy.try_shutdown()


def _spin_beside(node: Any, judge: Judge, seconds: float | None) -> None:
    """Spins on a thread of its own while the judge runs on this one; either's end is the other's."""
    executor, failures = SingleThreadedExecutor(), []
    executor.add_node(node)

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass
        except BaseException as failure:  # carried to the thread that runs the judge, and raised there
            failures.append(failure)
        finally:
            judge.stop()

    thread = threading.Thread(target=spin, name="ros", daemon=True)
    thread.start()
    try:
        judge.run(seconds)
    finally:
        executor.shutdown()
        thread.join(SHUTDOWN_S)
    if failures:
        raise failures[0]
