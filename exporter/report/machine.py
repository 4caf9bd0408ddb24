"""The machine a report was made on, in words, without anything that tells one machine of a kind from another."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """For example ``AMD EPYC 9334, 8 logical cores, Linux x86_64, Python 3.11.7``."""
    cores = f"{os.cpu_count()} logical cores"
    return f"{_processor()}, {cores}, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def _processor() -> str:
    # An ARM board names itself in the device tree, a PC in /proc/cpuinfo.
    board = _first_line(Path("/proc/device-tree/model"), "")
    model = _first_line(Path("/proc/cpuinfo"), "model name").partition(":")[2].strip()
    return board or model or platform.processor() or "unknown processor"


def _first_line(path: Path, start: str) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:  # not Linux, or not that kind of machine
        return ""
    return next((line.rstrip("\0").strip() for line in lines if line.startswith(start)), "")
