"""A stage of a bundle as back ends and builders are given it: its graph checked, its files held still meanwhile.

Everybody who compiles a stage, or looks into its graph, gets it here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trunkline.runtime import onnx_scan
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BackendError, BundleError
from trunkline.runtime.manifest import Variant
from trunkline.runtime.onnx_nodes import read_graph


@contextlib.contextmanager
def stage_files(bundle: Bundle, name: str, variant: str, *, threads: int | None = None) -> Iterator[StageFiles]:
    """One variant of a stage. Weights are opened by path: nobody may touch them before the block ends.

    Args:
        bundle: that holds the stage.
        name: of the stage.
        variant: which of its forms.
        threads: for the back end.

    Raises:
        BackendError: the stage has no such variant.
        BundleError: its graph is refused.
        IntegrityError: a file is not what the manifest says, or was touched meanwhile; what was made of it must not be
            used.
    """
    stage = bundle.manifest.stages[name]
    form = stage.variants.get(variant)
    if form is None:
        raise BackendError(
            "the bundle holds no variant that this back end runs",
            where=f"{bundle.root}, stage {name}",
            expected=variant,
            found=", ".join(stage.variants),
            fix="export the bundle for this target",
        )
    graph = checked_graph(bundle, form)
    if name == "text":
        _check_table(graph, bundle.manifest.text.spec.vocab_size, f"{bundle.root}, {form.graph}")
    folder = (bundle.root / form.graph).parent.resolve()
    with bundle.unchanged(form.weights) if form.weights else contextlib.nullcontext():
        digest = bundle.manifest.files[form.weights].sha256 if form.weights else None
        yield StageFiles(name, stage, graph, folder, threads, digest, bundle.digest)


def checked_graph(bundle: Bundle, variant: Variant) -> bytes:
    """The graph of a variant, after :func:`trunkline.runtime.onnx_scan.scan`.

    Raises:
        BundleError: it is refused.
        IntegrityError: it is not what the manifest says.
    """
    where = f"{bundle.root}, {variant.graph}"
    graph = bundle.read(variant.graph, onnx_scan.MAX_GRAPH_BYTES)
    weights = variant.weights
    if weights and Path(weights).parent != Path(variant.graph).parent:
        raise BundleError("a stage's weight file must lie beside its graph", where=where, found=weights)
    onnx_scan.scan(
        graph,
        opset=variant.opset,
        weights=Path(weights).name if weights else None,
        weights_bytes=bundle.manifest.files[weights].size if weights else 0,
        where=where,
    )
    return graph


def _check_table(graph: bytes, rows: int, where: str) -> None:
    """Raises BundleError if ids select from a table of other than ``rows`` rows, which is what ids are held against."""
    read = read_graph(graph, where)
    tables = {node.inputs[0] for node in read.nodes if node.operator == "Gather" and node.inputs[1:] == ("ids",)}
    found = {read.constants[name].shape[:1] for name in tables if name in read.constants}
    if found - {(rows,)}:
        raise BundleError(
            "the token embedding table is of another size than the manifest says",
            where=where,
            expected=f"{rows} rows",
            found=[f"shape {read.constants[name].shape}" for name in sorted(tables) if name in read.constants],
            fix="export the bundle again",
        )
