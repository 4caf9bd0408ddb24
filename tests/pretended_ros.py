"""A pretended ROS 2: the modules that the example's node imports, with what it uses of them, and nothing more.

Signatures are rclpy's own, as far as they go: what it takes by keyword only is keyword-only here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import trunkline_ros
from trunkline_ros import stub

Policy = Enum("Policy", "KEEP_LAST RELIABLE BEST_EFFORT TRANSIENT_LOCAL VOLATILE")


class QoSProfile:
    def __init__(self, **policies: Any) -> None:
        allowed = {"history", "depth", "reliability", "durability", "lifespan", "deadline", "liveliness"}
        assert set(policies) <= allowed
        self.policies = policies


@dataclass(kw_only=True)
class Duration:
    seconds: int = 0
    nanoseconds: int = 0


class ExternalShutdownException(Exception):
    pass


@dataclass(kw_only=True)
class KeyValue:
    key: str = ""
    value: str = ""


@dataclass(kw_only=True)
class DiagnosticStatus:
    level: bytes = b"\0"
    name: str = ""
    message: str = ""
    hardware_id: str = ""
    values: list[KeyValue] = field(default_factory=list)


DiagnosticStatus.OK, DiagnosticStatus.WARN = b"\0", b"\1"  # type: ignore[attr-defined]


@dataclass(kw_only=True)
class DiagnosticArray:
    header: stub.Header = field(default_factory=stub.Header)
    status: list[DiagnosticStatus] = field(default_factory=list)


class Publisher:
    def __init__(self, kind: type, qos: Any) -> None:
        self.kind, self.qos = kind, qos
        self.messages: list[Any] = []
        self.came = threading.Event()

    def publish(self, message: Any) -> None:
        assert type(message) is self.kind
        self.messages.append(message)
        self.came.set()


class Node:
    """One node; its clock is ``now_ns``."""

    def __init__(self, parameters: dict[str, Any], now_ns: Callable[[], int]) -> None:
        self.parameters, self.declared, self._now_ns = {"use_sim_time": False, **parameters}, {}, now_ns
        self.subscriptions: dict[str, tuple[type, Callable[[Any], None], Any]] = {}
        self.publishers: dict[str, Publisher] = {}
        self.timers: list[Callable[[], None]] = []
        self.destroyed = False

    def declare_parameter(self, name: str, value: Any = None) -> Any:
        self.declared[name] = value
        return SimpleNamespace(value=self.parameters.get(name, value))

    def get_parameter(self, name: str) -> Any:
        return SimpleNamespace(value=self.parameters[name])

    def create_publisher(self, msg_type: type, topic: str, qos_profile: Any) -> Publisher:
        return self.publishers.setdefault(topic, Publisher(msg_type, qos_profile))

    def create_subscription(
        self, msg_type: type, topic: str, callback: Callable[[Any], None], qos_profile: Any
    ) -> None:
        self.subscriptions[topic] = (msg_type, callback, qos_profile)

    def create_timer(self, timer_period_sec: float, callback: Callable[[], None]) -> None:
        self.timers.append(callback)

    def get_clock(self) -> Any:
        stamp = stub.time_of(self._now_ns())
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=self._now_ns(), to_msg=lambda: stamp))

    def get_name(self) -> str:
        return "trunkline"

    def destroy_node(self) -> None:
        self.destroyed = True


def install(monkeypatch: pytest.MonkeyPatch, node: Node, spin: Callable[[Node], None]) -> list[str]:
    """Puts the modules in place; ``spin`` is what the executor does. Returns what was called, as it happens."""
    called: list[str] = []

    class SingleThreadedExecutor:
        def add_node(self, added: Node) -> None:
            assert added is node

        def spin(self) -> None:
            spin(node)

        def shutdown(self) -> None:
            called.append("executor shut down")

    modules: dict[str, dict[str, Any]] = {
        "rclpy": {
            "init": lambda args=None: called.append(f"init {args}"),
            "create_node": lambda name: node,
            "try_shutdown": lambda: called.append("shut down"),
        },
        "rclpy.duration": {"Duration": Duration},
        "rclpy.executors": {
            "ExternalShutdownException": ExternalShutdownException,
            "SingleThreadedExecutor": SingleThreadedExecutor,
        },
        "rclpy.qos": {
            **dict.fromkeys(("DurabilityPolicy", "HistoryPolicy", "ReliabilityPolicy"), Policy),
            "QoSProfile": QoSProfile,
        },
        "sensor_msgs.msg": {"Image": stub.Image},
        "std_msgs.msg": {
            name: getattr(stub, name) for name in ("Float32MultiArray", "Int32", "MultiArrayDimension", "String")
        },
        "diagnostic_msgs.msg": {
            "DiagnosticArray": DiagnosticArray,
            "DiagnosticStatus": DiagnosticStatus,
            "KeyValue": KeyValue,
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]  # for importlib.util.find_spec
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "trunkline_ros.ros", raising=False)
    monkeypatch.delattr(trunkline_ros, "ros", raising=False)  # an earlier test's, made of its own modules
    return called
