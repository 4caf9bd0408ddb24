"""What an engine is bound to besides its stage: the library that compiles and runs it, and the device."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields

from trunkline.runtime.record import shown

MAX_TEXT_CHARS = 200


def this_system() -> str:
    """Operating system and processor, such as linux-aarch64: engines hold code for the processor, too."""
    return f"{sys.platform}-{platform.machine().lower()}"


class _Texts:
    """A record of texts that people are shown."""

    def problems(self) -> Iterator[str]:
        """What cannot be, in words."""
        for each in fields(self):  # type: ignore[arg-type]  # only dataclasses inherit this
            text = getattr(self, each.name)
            if not (0 < len(text) <= MAX_TEXT_CHARS and text.isprintable()):
                yield f"{type(self).__name__.lower()}.{each.name} is {shown(text)}, not a line of text"


@dataclass(frozen=True)
class Library(_Texts):
    """A compiler of stages: name such as ``tensorrt``, and its whole version such as ``10.3.0.30``."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Device(_Texts):
    """A GPU, as its driver describes it.

    Attributes:
        name: such as ``Orin`` or ``NVIDIA GeForce RTX 4090``.
        compute_capability: such as ``8.7``.
        driver: version of the driver, as precise as it is known.
        system: operating system and processor; :func:`this_system` on the machine itself.
    """

    name: str
    compute_capability: str
    driver: str
    system: str

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.compute_capability}, driver {self.driver}, {self.system}"
