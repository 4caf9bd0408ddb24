"""Cuts windows from a recording and writes them down, once.

A store appears under its name when it is complete: it is written into a hidden sibling, which is then renamed, so that
an interrupted build leaves nothing that could be taken for a store. Several programs may build one store at once; the
first that is done wins, and the others take what it wrote.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from trunkline.calibration.windows.cut import Cut, cut
from trunkline.calibration.windows.plan import WindowPlan
from trunkline.calibration.windows.recording import Recording, open_recording
from trunkline.calibration.windows.storage import ErrorMeter, UnstorableError, decode, encode, encoded_bytes
from trunkline.calibration.windows.store import WindowStore
from trunkline.calibration.windows.store_record import (
    INDEX_NAME,
    RECORD_NAME,
    FileFacts,
    Resolution,
    StoreIdentity,
    StoreRecord,
    data_name,
    identity_of,
    planned,
    recording_facts,
)
from trunkline.runtime import record
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.files import sha256_of, sync_tree
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.sensor.resample import resample
from trunkline.runtime.sensor.window import Rows

#: A hidden sibling in which nothing was written for so long was left behind by a process that died.
ABANDONED_S = 3600


def build_store(
    recording: Path | str,
    plan: WindowPlan,
    output: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> WindowStore:
    """A store of a recording's windows: the one that is there, if it is of this recording and plan, or a new one.

    Args:
        recording: an npz file of either form.
        plan: which windows, in what form.
        output: directory of the store.
        overwrite: replace a store of something else, or a damaged one.
        progress: counts bytes of the recording, then windows.

    Returns:
        The store, opened at its first resolution.

    Raises:
        InputError: the plan is none.
        DatasetError: the recording cannot be read or does not fit the plan; numbers do not fit the storage; something
            else is in the place of the store; the disk is full.
    """
    plan.require()
    output, opened = Path(output).absolute(), open_recording(recording)
    windows = cut(opened, plan)
    progress("reading the recording", 0, 1)
    identity = planned(_sha256(opened), plan)
    if _exists(output) and (found := _standing(output, identity, overwrite)):
        return found
    opened.check(progress)
    with _becoming(output, identity, overwrite) as folder:
        _require_room(folder, _size_bytes(windows, plan))
        _write(folder, opened, windows, plan, identity, progress)
        opened.require_unchanged()
    return WindowStore(output, key=identity.key)


def _sha256(recording: Recording) -> str:
    try:
        return sha256_of(recording.path)
    except OSError as error:
        raise DatasetError("cannot read a recording", where=recording.path, found=error.strerror) from error


def _exists(output: Path) -> bool:
    return output.exists() or output.is_symlink()


def _standing(output: Path, wanted: StoreIdentity, overwrite: bool) -> WindowStore | None:
    """The store that is there, if it is the one that is wanted; None if it may be replaced."""
    if output.is_symlink() or not (output / RECORD_NAME).is_file():
        raise DatasetError(
            "something else is in the place of the store", where=output, fix="choose another path for the store"
        )
    try:
        store = WindowStore(output)
        if different := wanted.differences(identity_of(store.record)):
            raise DatasetError(
                "a store of other windows is in the place of the store",
                where=output,
                found=different,
                fix="replace it (--overwrite), or choose another path",
            )
    except DatasetError:
        if not overwrite:
            raise
        return None
    return store


@contextlib.contextmanager
def _becoming(output: Path, wanted: StoreIdentity, overwrite: bool) -> Iterator[Path]:
    """A hidden sibling directory that becomes ``output`` when the block ends without an error."""
    folder = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(output)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
        yield folder
        folder.chmod(0o755)
        sync_tree(folder)
        _publish(folder, output, wanted, overwrite)
    except OSError as error:
        raise DatasetError(
            "a store of windows cannot be written",
            where=output,
            found=error.strerror or str(error),
            fix="check the disk and the permissions of the folder",
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, output: Path, wanted: StoreIdentity, overwrite: bool) -> None:
    """Renames; whoever built the same store meanwhile has done it for us."""
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".partial", dir=output.parent) as aside:
        replaced = None
        if _exists(output) and _standing(output, wanted, overwrite) is None:
            replaced = output.rename(Path(aside) / output.name)
        try:
            folder.rename(output)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                _standing(output, wanted, overwrite=False)
                return
            if replaced is not None:
                replaced.rename(output)
            raise


def _remove_abandoned(output: Path) -> None:
    """Hidden siblings of earlier builds that were killed; they may have gigabytes."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.*.partial"):
        with contextlib.suppress(OSError):  # it became a store, or somebody else removed it
            newest = max(each.stat().st_mtime for each in [path, *path.iterdir()])
            if time.time() - newest > ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def _size_bytes(windows: Cut, plan: WindowPlan) -> int:
    return sum(
        encoded_bytes(plan.storage, steps or int(length), plan.form.channels)
        for steps in plan.steps
        for length in windows.lengths.tolist()
    )


def _require_room(folder: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if size_bytes > free_bytes:
        raise DatasetError(
            "the disk has no room for the windows",
            where=folder.parent,
            expected=f"{size_bytes / 1e9:.2f} GB",
            found=f"{free_bytes / 1e9:.2f} GB free",
            fix="store them as float16 or int8, cut fewer, or choose another disk",
        )


@dataclass
class _Writer:
    """One resolution while it is written."""

    steps: int
    file: BinaryIO
    meter: ErrorMeter
    size: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, rows: Rows, plan: WindowPlan) -> None:
        """Resamples a window as it was cut (n, C), and writes it."""
        rows = resample(rows, self.steps, plan.form.resample) if self.steps else rows
        content = encode(rows, plan.storage)
        if plan.storage != "float32":
            self.meter.add(rows, decode(content, plan.storage, *rows.shape))
        self.file.write(content.data)
        self.digest.update(content.data)
        self.size += content.nbytes

    def result(self) -> Resolution:
        """What the record says of it."""
        error = self.meter.result()
        return Resolution(self.steps, FileFacts(self.size, self.digest.hexdigest()), error.max, error.rms)


def _write(
    folder: Path, recording: Recording, windows: Cut, plan: WindowPlan, identity: StoreIdentity, progress: Progress
) -> None:
    """Writes data, index and, last of all, the record."""
    resolutions, zeros = _write_data(folder, recording, windows, plan, progress)
    content = save_safetensors(_index(windows))
    (folder / INDEX_NAME).write_bytes(content)
    found = StoreRecord(
        identity.format,
        identity.schema,
        identity.key,
        recording_facts(recording, identity.recording),
        identity.form,
        identity.cut,
        identity.storage,
        windows=len(zeros),
        padded=int((windows.rows < windows.lengths).sum()),
        zeros_left=int(zeros[:, 0].sum()),
        zeros_right=int(zeros[:, 1].sum()),
        skipped=len(windows.skipped),
        resolutions=resolutions,
        index=FileFacts(len(content), hashlib.sha256(content).hexdigest()),
    )
    (folder / RECORD_NAME).write_bytes(record.encode(found.sealed()))


def _write_data(
    folder: Path, recording: Recording, windows: Cut, plan: WindowPlan, progress: Progress
) -> tuple[tuple[Resolution, ...], NDArray[np.bool_]]:
    """All windows at all resolutions, and which of them (W, 2) begin and end with zeros."""
    zeros = np.zeros((len(windows.rows), 2), np.bool_)
    with contextlib.ExitStack() as stack:
        writers = [
            _Writer(steps, stack.enter_context((folder / data_name(steps)).open("wb")), ErrorMeter(plan.form.channels))
            for steps in plan.steps
        ]
        for index in range(len(zeros)):
            progress("cutting windows", index, len(zeros))
            rows = windows.read(index)
            zeros[index] = _zero_ends(rows, int(windows.rows[index]), plan)
            for writer in writers:
                _add(writer, rows, plan, f"{recording.path}, window {int(windows.moments[index])}")
        progress("cutting windows", len(zeros), len(zeros))
    return tuple(writer.result() for writer in writers), zeros


def _add(writer: _Writer, rows: Rows, plan: WindowPlan, where: str) -> None:
    try:
        writer.add(rows, plan)
    except UnstorableError as error:
        raise DatasetError(
            f"a window cannot be stored as {plan.storage}",
            where=where,
            found=str(error),
            fix="store float32, or scale the sensor's numbers before they are recorded and trained on",
        ) from error


def _zero_ends(rows: Rows, samples: int, plan: WindowPlan) -> tuple[bool, bool]:
    """Whether the samples of a window, without our padding, begin or end with nothing but zeros."""
    data = rows[len(rows) - samples :] if plan.form.padding == "left" else rows[:samples]
    return not data[0].any(), not data[-1].any()


def _index(windows: Cut) -> dict[str, NDArray[np.int64]]:
    names = ("lengths", "rows", "missing", "stamps_ns", "moments")
    return {name: np.ascontiguousarray(getattr(windows, name), np.int64) for name in names}
