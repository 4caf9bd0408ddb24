"""Where the images of a data set lie, and which names may lead to them.

A data set may come from anywhere, so what its file says never leads out of the file's own folder: not through ``..``,
not as an absolute path, not through a link. Whoever names a folder in the call means that folder, link or not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trunkline.runtime.errors import DatasetError
from trunkline.runtime.files import name_problem

#: What file systems allow for one name.
MAX_NAME_BYTES = 255


def images_folder(metadata: Mapping[str, Any], path: Path, images: Path | str | None) -> Path:
    """The folder that was named, or the one that the metadata names beside the JSON file ``path``.

    Raises:
        DatasetError: there is no such folder, or the metadata names none that may be used.
    """
    folder = _stated_folder(metadata, path) if images is None else Path(images)
    if not folder.is_dir():
        raise DatasetError(
            "the images folder does not exist", where=folder, fix="name it: read_dataset(path, images=FOLDER)"
        )
    return folder


def image_problem(folder: Path, name: str) -> str | None:
    """Why ``name`` may not be an image below ``folder``, or None if it may; it need not exist."""
    if problem := name_problem(name):
        return problem
    if any(len(part.encode()) > MAX_NAME_BYTES for part in name.split("/")):
        return f"is longer than {MAX_NAME_BYTES} bytes"
    return None if inside(folder / name, folder) else "is a link that leads out of the images folder"


def _stated_folder(metadata: Mapping[str, Any], path: Path) -> Path:
    name = metadata.get("images_folder")
    problem = "is not stated" if not isinstance(name, str) else name_problem(name)
    if not problem and not inside(path.parent / str(name), path.parent):
        problem = "is a link that leads out of the data set's folder"
    if problem:
        raise DatasetError(
            "cannot tell where the images are",
            where=path,
            expected="_metadata.images_folder, a folder beside the JSON file",
            found=f"images_folder {name!r} {problem}" if name is not None else "no images_folder",
            fix="name the folder: read_dataset(path, images=FOLDER)",
        )
    return path.parent / str(name)


def inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` lies below ``folder`` once all links are followed; it need not exist."""
    # realpath follows links as far as they go and takes loops as they are, where Path.resolve raises.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
