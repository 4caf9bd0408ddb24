"""How many threads a back end uses where nobody says."""

from __future__ import annotations

import os


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once where the kernel tells."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for core in usable:
        try:
            with open(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list") as file:
                siblings.add(file.read().strip())
        except OSError:
            return max(1, len(usable))
    return max(1, len(siblings))
