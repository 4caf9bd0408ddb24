"""Where commands write: results to stdout, for people or as JSON; everything else to stderr.

Whatever the two are, no command ends in a library's error. Characters that an encoding lacks are escaped. A result
that cannot be written ends the command with 1 and a message, or without one where the reader has gone. A diagnostic
that cannot be written is lost, and the work goes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from trunkline.runtime.errors import TrunklineError
from trunkline.runtime.progress import Progress as ProgressCallback

stdout = Console()
stderr = Console(stderr=True)


@contextmanager
def standard_streams() -> Iterator[None]:
    """The two streams as this module promises them, for everything that writes to them inside the block.

    Raises:
        TrunklineError: inside the block, where a result cannot be written.
        typer.Exit: likewise, where nobody reads it any more.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, _Results(sys.stdout)), cast(TextIO, _Diagnostics(sys.stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Diagnostics:
    """A stream that takes any text, and whose descriptor leads nowhere once a write has failed."""

    def __init__(self, stream: Any) -> None:
        self._stream = open(os.devnull) if stream is None else stream  # noqa: SIM115 - to a closed one writing fails
        with suppress(AttributeError):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._failing():
            self._stream.write(text)
        self.flush()
        return len(text)

    def flush(self) -> None:
        with self._failing():
            self._stream.flush()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with suppress(OSError), open(os.devnull, "w") as nowhere:  # for what the stream still holds
                os.dup2(nowhere.fileno(), self._stream.fileno())
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """What is lost here was no result."""


class _Results(_Diagnostics):
    """The same, but what cannot be written is told."""

    def _failed(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(1) from error
        raise TrunklineError(
            "the result cannot be written",
            where="standard output",
            found=error.strerror or str(error),
            fix="free space where it goes, or send it elsewhere; files that the command was to write are written",
        ) from error


def print_json(result: Any, indent: int = 2) -> None:
    """A result as one JSON document in ASCII; dataclasses, arrays and paths become plain values."""
    sys.stdout.write(json.dumps(plain(result), indent=indent, allow_nan=False) + "\n")


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
