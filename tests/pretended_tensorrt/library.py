"""A TensorRT without a GPU, as wide as the real bindings of a version and not a member wider.

Its classes are made of ``tests/trt_bindings``: what is not there raises AttributeError, and a call that fits none of a
member's signatures TypeError, as with the real thing. Every member that is touched is remembered. What stands behind
the members is in ``building.py`` and ``running.py``.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.pretended_tensorrt.building import Builder, Parser
from tests.pretended_tensorrt.running import Runtime
from tests.pretended_tensorrt.world import Enumerator, HostMemory, World

DUMPS = Path(__file__).parents[1] / "trt_bindings"

#: Classes that are made by calling them, and what stands behind them.
BEHIND: dict[str, Any] = {"Builder": Builder, "OnnxParser": Parser, "Runtime": Runtime}
#: Python's names of classes that the signatures call by those of C++.
_ALIASES = {"IParserError": "ParserError", "IEngineInspector": "EngineInspector"}


def versions(kind: str = "full") -> list[str]:
    """Versions whose bindings were read, oldest first."""
    found = [path.stem.removeprefix(f"{kind}_") for path in DUMPS.glob(f"{kind}_*.json")]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


VERSIONS, LEAN_VERSIONS = versions(), versions("lean")
OLDEST, NEWEST = VERSIONS[0], VERSIONS[-1]


def dump(version: str, kind: str = "full") -> dict[str, Any]:
    """What the bindings of a version offer, as far as it is used."""
    return json.loads((DUMPS / f"{kind}_{version}.json").read_text())


class _Named:
    """A class attribute whose use is remembered."""

    def __init__(self, world: World, label: str, value: Any) -> None:
        self._world, self._label, self._value = world, label, value

    def __get__(self, instance: object, owner: type) -> Any:
        self._world.used.add(self._label)
        return self._value


class Bound:
    """An object of a generated class; ``impl`` is what stands behind it."""

    impl: Any

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "impl" and not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{type(self).__name__} has no member {name} that can be set")
        super().__setattr__(name, value)


def library(version: str, world: World, kind: str = "full") -> types.ModuleType:
    """A module of the version's classes."""
    content = dump(version, kind)
    module = types.ModuleType("tensorrt" if kind == "full" else "tensorrt_lean")
    module.__version__ = content["version"]
    for name, members in content["classes"].items():
        setattr(module, name, _class(module, world, name, members))
    world.version, world.lean = content["version"], kind == "lean"
    world.severities = module.ILogger.__dict__["Severity"]._value
    return module


def _class(module: types.ModuleType, world: World, name: str, members: dict[str, Any]) -> type:
    behind = BEHIND.get(name)
    body: dict[str, Any] = {}
    for member, spec in members.items():
        label = f"{name}.{member}"
        if isinstance(spec, int):
            body[member] = _Named(world, label, Enumerator(name, member, spec))
        elif isinstance(spec, dict):
            values = {each: Enumerator(f"{name}.{member}", each, number) for each, number in spec.items()}
            body[member] = _Named(world, label, types.SimpleNamespace(**values))
        elif spec[0] == "property":
            body[member] = _property(module, world, label, spec)
        elif member == "__init__":
            body[member] = _constructor(world, label, spec, behind)
        else:
            body[member] = _method(module, world, label, spec)
    if name == "IHostMemory":  # the real one is a buffer, which a class of Python cannot be before 3.12
        return type(name, (HostMemory,), {})
    return type(name, (Bound,), body)


def _property(module: types.ModuleType, world: World, label: str, spec: list[str]) -> property:
    member = label.split(".")[1]

    def get(self: Bound) -> Any:
        world.used.add(label)
        return _wrapped(module, world, spec[1], getattr(self.impl, member))

    def put(self: Bound, value: Any) -> None:
        world.used.add(label)
        if not _fits(value, spec[1]):
            raise TypeError(f"{label} is a {spec[1]}, not {value!r}")
        setattr(self.impl, member, value)

    return property(get, put if spec[2] == "settable" else None)


def _constructor(world: World, label: str, signatures: list[str], behind: Any) -> Callable[..., None]:
    def construct(self: Bound, *arguments: Any, **named: Any) -> None:
        world.used.add(label)
        values = _matched(label, signatures, arguments, named)
        if world.says_no(label):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.impl = behind(world, *values) if behind else None

    return construct


def _method(module: types.ModuleType, world: World, label: str, signatures: list[str]) -> Callable[..., Any]:
    member = label.split(".")[1]

    def call(self: Bound, *arguments: Any, **named: Any) -> Any:
        world.used.add(label)
        values = _matched(label, signatures, arguments, named)
        gives = signatures[0].rsplit("-> ", 1)[1]
        if world.says_no(label):
            return {"bool": False, "int": -1}.get(gives)
        return _wrapped(module, world, gives, getattr(self.impl, member)(*values))

    return call


def _wrapped(module: types.ModuleType, world: World, gives: str, value: Any) -> Any:
    """An answer as an object of the class that the signature promises."""
    kind = getattr(module, _ALIASES.get(gives, gives), None)
    if value is None or not isinstance(kind, type) or isinstance(value, HostMemory | Bound | Enumerator):
        return value
    made = kind.__new__(kind)
    made.impl = value
    return made


def _matched(label: str, signatures: list[str], arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    """Arguments in the order of the first signature that takes them."""
    for signature in signatures:
        wanted = _parameters(signature)
        values: list[Any] = list(arguments)
        if len(values) > len(wanted) or set(named) - {name for name, _, _ in wanted[len(values) :]}:
            continue
        rest = wanted[len(values) :]
        if any(default is None and name not in named for name, _, default in rest):
            continue
        values += [named.get(name, ...) for name, _, _ in rest]
        if all(
            value is ... or _fits(value, kind, default)
            for value, (_, kind, default) in zip(values, wanted, strict=True)
        ):
            return [value for value in values if value is not ...]
    raise TypeError(f"{label}(): incompatible function arguments {arguments} {named}; there are {signatures}")


def _parameters(signature: str) -> list[tuple[str, str, str | None]]:
    """Name, type and default of every parameter."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    pieces = re.findall(r"(\w+): ((?:[^,=\[<]|\[[^\]]*\])+?)(?: = (<[^>]*>|[^,]+))?(?:, |$)", inside)
    return [(name, kind.strip(), default or None) for name, kind, default in pieces]


def _fits(value: Any, kind: str, default: str | None = None) -> bool:
    if value is None:
        return default == "None"
    kind = _ALIASES.get(kind, kind)
    if kind in ("int", "typing.SupportsInt"):
        return isinstance(value, int)
    if kind in ("buffer", "typing_extensions.Buffer"):
        return isinstance(value, bytes | bytearray | memoryview)
    if kind == "Dims":
        return isinstance(value, tuple | list) and all(isinstance(size, int) for size in value)
    plain = {"str": str, "bool": bool, "float": float, "tuple": tuple, "list": list, "object": object}
    if kind in plain:
        return isinstance(value, plain[kind])
    if isinstance(value, Enumerator):
        return value.kind == kind
    return kind in {each.__name__ for each in type(value).__mro__}
