"""Options that several commands share, and the check for the exporter's libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from trunkline.runtime.errors import TrunkError, TrunklineError
from trunkline.runtime.progress import Progress

if TYPE_CHECKING:
    from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that `trunkline export` wrote.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
BackendOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this at run time on Python 3.10
    typer.Option("--backend", metavar="NAME", help="Back end to run on; by default the fastest installed."),
]
ThreadsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--threads", min=1, help="Cores to use; by default all physical ones this process may use."),
]
BackboneOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--backbone",
        metavar="NAME",
        help="open_clip name of the trunk: hf-hub:ORG/REPO, local-dir:FOLDER, or a built-in name. "
        "By default the name in the checkpoint.",
    ),
]
TrunkWeightsOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--trunk-weights", metavar="FILE", help="Weights of a built-in trunk."),
]
PreprocessOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--preprocess",
        metavar="SETTINGS|FILE.json",
        help="How the trunk's images are prepared, where its makers do not say it for certain: 'mean=0.5,0.5,0.5 "
        "std=0.5,0.5,0.5 interpolation=bicubic resize_mode=squash', or some of it; or a file with preprocess_cfg. "
        "The size is the model's.",
    ),
]

_REPORT_MODULES = ("jinja2", "markupsafe", "matplotlib")
_EXPORT_MODULES = (
    *("torch", "torchvision", "open_clip", "timm", "transformers", "onnx", "onnxscript", "onnx_ir"),
    *_REPORT_MODULES,
)


@contextmanager
def exporter_libraries(command: str) -> Iterator[None]:
    """Turns a missing exporter library into advice."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXPORT_MODULES:
            raise
        if module in _REPORT_MODULES:
            needs, fix = "matplotlib and jinja2", "pip install matplotlib jinja2, which is all that a report needs here"
            fix += "; on a workstation pip install 'trunkline[export]'"
        else:
            needs = "PyTorch and its relatives"
            fix = "pip install 'trunkline[export]' on the workstation; a robot only needs the bundle"
        raise TrunklineError(f"`trunkline {command}` needs {needs}", found=str(error), fix=fix) from error


def reference_for(
    command: str,
    file: Path,
    progress: Progress,
    *,
    backbone: str | None,
    trunk_weights: Path | None,
    preprocess: str | None,
) -> PyTorchEnsemble:
    """The PyTorch ensemble of a checkpoint, for the commands that compare with it.

    Raises:
        CheckpointError: the file cannot be read.
        TrunkError: its trunk cannot be built, is another one, or its preprocessing is not certain.
        InputError: the stated preprocessing cannot be read.
    """
    with exporter_libraries(command):
        from trunkline.exporter.checkpoint.read import read_checkpoint
        from trunkline.exporter.export import require_fit
        from trunkline.exporter.own_preprocessing import read_statement
        from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
        from trunkline.exporter.trunk import load_trunk
    stated = None if preprocess is None else read_statement(preprocess)
    checkpoint = read_checkpoint(file, progress=progress)
    name = backbone or checkpoint.backbone
    if name is None:
        raise TrunkError("the checkpoint does not name its trunk", where=file, fix="name it with --backbone")
    trunk = load_trunk(name, trunk_weights, stated)
    require_fit(checkpoint, trunk, progress)
    return PyTorchEnsemble(trunk, checkpoint)
