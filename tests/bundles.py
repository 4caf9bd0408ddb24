"""Bundles to be spoilt: copies whose manifest agrees with whatever was put into them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HISTORY_LENGTH, ACTION_DIM, PADDING = 10, 7, -5.0


def copied(bundle: Path, target: Path) -> Path:
    shutil.copytree(bundle, target)
    return target


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def put(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file and its entry in the manifest, so that only the content is bad."""
    (folder / name).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))


def age(folder: Path) -> None:
    """Waits until the kernel's change times of all files are old enough to be remembered."""
    newest = max(path.stat().st_ctime for path in folder.rglob("*"))
    while time.time() < newest + 2.05:
        time.sleep(0.05)


def set_times_back(path: Path, status: os.stat_result) -> None:
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def frame(seed: int = 0, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def windows(count: int, seed: int = 0, steps: int = HISTORY_LENGTH) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (count, steps, ACTION_DIM)).astype(np.float32)
