"""onnxruntime with a pretended GPU: real sessions on the processor that claim providers, and remember what was asked.

What a session says of itself can be made up: the providers it has, and which of them ran an operator. The rest is real,
so that what is tested is what would run, but for the GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trunkline.runtime.backends import ort

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
#: (operator, whether it gives floats) -> the provider that ran it.
Where = Callable[[str, bool], str]


def all_on(provider: str) -> Where:
    """Arithmetic on the GPU, shapes on the processor, as ONNX Runtime does it."""
    return lambda operator, floats: provider if floats else ort.CPU


class PretendedLibrary:
    """Stands for the module ``onnxruntime``.

    Attributes:
        asked: providers with options of every session, in order.
        options: the library's options of every session.
        leaves_out: providers that sessions do not get although they asked.
        where: what ran an operator, for its profile.
        fails: raised instead of making a session.
    """

    def __init__(self, version: str = "1.31.1", providers: Sequence[str] = (TENSORRT, CUDA, ort.CPU)) -> None:
        self.real = ort.library()
        self.__version__, self.__file__ = version, self.real.__file__
        self.providers = list(providers)
        self.asked: list[list[tuple[str, dict[str, str]]]] = []
        self.options: list[Any] = []
        self.leaves_out: set[str] = set()
        self.where: Where = all_on(CUDA)
        self.fails: Exception | None = None
        self.keywords: list[dict[str, Any]] = []

    def get_available_providers(self) -> list[str]:
        return self.providers

    def SessionOptions(self) -> Any:
        self.options.append(self.real.SessionOptions())
        return self.options[-1]

    def InferenceSession(self, graph: bytes, options: Any, providers: list[Any], **keywords: Any) -> Any:
        self.asked.append(providers)
        self.keywords.append(keywords)
        if self.fails is not None:
            raise self.fails
        return PretendedSession(self, self.real.InferenceSession(graph, options, providers=[ort.CPU], **keywords))


class PretendedSession:
    def __init__(self, library: PretendedLibrary, real: Any) -> None:
        self._library, self._real = library, real
        self._asked = [name for name, _ in library.asked[-1]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return [*(name for name in self._asked if name not in self._library.leaves_out), ort.CPU]

    def io_binding(self) -> Any:
        binding = self._real.io_binding()

        def bind_output(name: str, device: str, number: int) -> None:
            assert (device, number) == ("cuda", 0)
            binding.bind_output(name, "cpu", 0)

        return SimpleNamespace(
            real=binding,
            bind_output=bind_output,
            bind_cpu_input=binding.bind_cpu_input,
            bind_ortvalue_input=binding.bind_ortvalue_input,
            get_outputs=binding.get_outputs,
        )

    def run_with_iobinding(self, binding: Any) -> None:
        self._real.run_with_iobinding(binding.real)

    def end_profiling(self) -> str:
        """The profile, with providers as pretended."""
        path = Path(self._real.end_profiling())
        events = json.loads(path.read_text())
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                node = event["args"]
                node["provider"] = self._library.where(node["op_name"], ort._gives_floats(node))
        path.write_text(json.dumps(events))
        return str(path)
