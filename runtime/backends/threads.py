"""How many threads a back end uses where nobody says."""

from __future__ import annotations

import os
from pathlib import Path

from trunkline.runtime import control_groups


def physical_cores(root: Path = Path("/")) -> int:
    """Physical cores this process may use, at least one: hyper-threads count once, where the kernel tells.

    A control group's share of two and a half is two: with a third thread, all would stand still now and then.

    Args:
        root: where the machine's files are; another folder than ``/`` for tests.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    folders = [root / f"sys/devices/system/cpu/cpu{core}/topology" for core in usable]
    siblings = [control_groups.read_text(folder / "thread_siblings_list").strip() for folder in folders]
    cores = len(set(siblings)) if all(siblings) else len(siblings)
    return max(1, int(min(cores, control_groups.processors(root))))
