"""``trunkline bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from trunkline.exporter.cli.options import BackendOption, BundleArgument, JsonOption, ThreadsOption
from trunkline.exporter.cli.output import print_json, print_table, progress_bar, show


def command(
    bundle: BundleArgument,
    iterations: Annotated[int, typer.Option("-n", "--iterations", min=1, help="Measured calls per case.")] = 30,
    candidates: Annotated[int, typer.Option(min=1, max=4096, help="Candidates per call.")] = 20,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Measure latency on this machine: per stage, and for the calls a control loop makes.

    Cases: a new frame; new candidates for the same frame; a new frame under 8 rephrasings. Instructions were seen
    before in all of them. `outside` is the time a call spends outside the back end.

    **Example**

        trunkline bench bundle/ -n 100
    """
    from trunkline.runtime.ensemble import load
    from trunkline.targets.latency import measure

    with progress_bar() as progress, load(bundle, backend=backend, threads=threads, progress=progress) as ensemble:
        report = measure(ensemble, iterations=iterations, candidates=candidates, progress=progress)
    if json:
        print_json(report)
        return
    for case in report.cases:
        parts = {"whole call": case.total, "outside the back end": case.outside, **case.stages}
        rows = [
            [name, *(f"{value:.3f}" for value in (each.p50_ms, each.p90_ms, each.p99_ms, each.max_ms))]
            for name, each in parts.items()
        ]
        print_table(f"{case.name}, {report.candidates} candidates", ["", "p50 ms", "p90", "p99", "max"], rows)
    show(f"{report.backend}, {iterations} calls per case")
