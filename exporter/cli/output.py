"""Where commands write: results to stdout, for people or as JSON; everything else to stderr."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from trunkline.runtime.progress import Progress as ProgressCallback

stdout = Console()
stderr = Console(stderr=True)


def print_json(result: Any) -> None:
    """A result as one JSON document; dataclasses, arrays and paths become plain values."""
    sys.stdout.write(json.dumps(plain(result), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for people; numbers are right-aligned."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) or _is_number(str(row[index])) for row in rows)
        table.add_column(column, justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    stdout.print(table)


def _is_number(text: str) -> bool:
    return bool(text) and text.strip("+-%").replace(".", "", 1).replace("e-", "", 1).isdecimal()


def show(text: str, style: str = "") -> None:
    """A line of a result. Not wrapped and not read as markup, since it may hold paths."""
    stdout.print(Text(text, style), soft_wrap=True)


def say(text: str) -> None:
    """A diagnostic line."""
    stderr.print(Text(text), soft_wrap=True)


def size(count: float) -> str:
    """Bytes for people: 312.4 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


@contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """A callback that draws bars on stderr; on a pipe it prints one line per step."""
    if not stderr.is_terminal or os.environ.get("CI"):
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(step: str, done: int, total: int) -> None:
            if step not in tasks:
                for earlier in tasks.values():
                    bars.update(earlier, visible=False)
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield update


class _Lines:
    """Progress without a terminal: a line when a step begins."""

    def __init__(self) -> None:
        self._step = ""
        self._started = time.monotonic()

    def __call__(self, step: str, done: int, total: int) -> None:
        if step != self._step:
            self._step = step
            say(f"[{time.monotonic() - self._started:6.1f} s] {step}")
