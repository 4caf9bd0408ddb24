"""Writes a report: everything is collected first, and the file appears as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

from trunkline.exporter.report.collect import collect
from trunkline.exporter.report.content import Report
from trunkline.exporter.report.page import render
from trunkline.runtime.errors import ExportError
from trunkline.runtime.files import replacing
from trunkline.runtime.progress import Progress, silent


def write_report(
    bundle: Path,
    output: Path,
    *,
    backend: str | None = None,
    latency: bool = True,
    against: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Report:
    """Reports on a bundle as one HTML file.

    A bundle that fails its gate is reported, too: look at ``verdict``, or pass ``parity`` to ``require_parity``.

    Args:
        bundle: directory of the bundle.
        output: file to write.
        backend: name of the back end; by default the fastest that is installed.
        latency: also measure it. Without, the same inputs give the same bytes.
        against: another bundle to put beside this one.
        overwrite: replace ``output`` if it is a file.
        progress: told what is done.

    Raises:
        ExportError: the file cannot be written.
        BundleError: a bundle, or its calibration record, is malformed.
        InputError: the other bundle does not take this one's golden inputs.
        BackendError: no back end runs a bundle here.
    """
    output = Path(output)
    _check_output(output, (Path(bundle), *([Path(against)] if against else [])), overwrite)
    try:
        with replacing(output) as temporary:  # opened first: an output that cannot be written shows before the work
            report = collect(bundle, backend=backend, latency=latency, against=against, progress=progress)
            temporary.write_text(render(report), encoding="utf-8")
    except OSError as error:
        raise ExportError(
            "cannot write the report",
            where=output,
            found=error.strerror or str(error),
            fix="check space and permissions",
        ) from error
    return report


def _check_output(output: Path, bundles: tuple[Path, ...], overwrite: bool) -> None:
    for bundle in bundles:
        if bundle.resolve() in output.resolve().parents:
            raise ExportError(
                "the report would lie inside the bundle, which would then hold a file that nobody listed",
                where=output,
                fix="write it beside the bundle",
            )
    if output.is_dir():
        raise ExportError("the output is a directory", where=output, fix="name a file in it, such as report.html")
    if (output.exists() or output.is_symlink()) and not overwrite:
        raise ExportError("the output exists already", where=output, fix="pass --overwrite to replace it")
