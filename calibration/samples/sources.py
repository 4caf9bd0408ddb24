"""Opens samples by what DATA is: a data set's JSON file, or a folder of pictures."""

from __future__ import annotations

from pathlib import Path

from trunkline.calibration.evaluation import DEFAULT_POOL, DEFAULT_SEED
from trunkline.calibration.samples.dataset import read_dataset
from trunkline.calibration.samples.dataset_samples import DatasetSamples
from trunkline.calibration.samples.folder_samples import FolderSamples
from trunkline.runtime.errors import DatasetError, InputError


def open_samples(
    path: Path | str, images: Path | str | None = None, *, pool: int = DEFAULT_POOL, seed: int = DEFAULT_SEED
) -> DatasetSamples | FolderSamples:
    """Samples of a data set (a JSON file) or of a folder; no picture is opened.

    Args:
        path: what to open.
        images: folder of a data set's images; by default the one that the file names.
        pool: windows per sample.
        seed: of the pools.

    Raises:
        DatasetError: it cannot be read, or is neither.
        InputError: ``pool`` is under 2, or ``images`` came with a folder.
    """
    path = Path(path)
    if pool < 2:
        raise InputError("a pool must leave a choice", expected="at least 2 windows", found=pool)
    if path.is_dir():
        if images is not None:
            raise InputError(
                "a folder of samples holds its own pictures",
                where=path,
                found=f"another folder of images: {images}",
                fix="name the data set's JSON file, or leave the other folder out",
            )
        return FolderSamples(path, pool, seed)
    if not path.exists():
        raise DatasetError(
            "cannot open samples", where=path, found="nothing", fix="name a data set's JSON file or a folder of images"
        )
    return DatasetSamples(read_dataset(path, images), pool, seed)
