"""``trunkline build``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from trunkline.exporter.cli.options import BundleArgument, JsonOption
from trunkline.exporter.cli.output import print_json, print_table, progress_bar, say, show, size
from trunkline.exporter.cli.plan import TargetOption

if TYPE_CHECKING:
    from trunkline.targets.building.run import BuildReport

GB = 1_000_000_000


def command(
    bundle: BundleArgument,
    target: TargetOption = "auto",
    cache: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Option(
            "--cache",
            metavar="DIR",
            envvar="TRUNKLINE_ENGINES",
            help="Where engines are kept; programs that load the bundle find them through the same variable. "
            "By default ~/.cache/trunkline/engines.",
        ),
    ] = None,
    cache_limit: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--cache-limit",
            metavar="GB",
            min=0.001,
            help="Engines that were not used for longest are removed above it.",
        ),
    ] = None,
    verify_only: Annotated[
        bool, typer.Option("--verify-only", help="Run the golden vectors on the engines in use; compile nothing.")
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="For TensorRT's lean runtime, which is small. May be slower."),
    ] = False,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="If the engines decide otherwise, compile parts to find the layer.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compile a bundle's stages into TensorRT engines for this device, and check that they decide as PyTorch did.

    Run it on the robot: engines are only good for the device, the driver and the TensorRT that made them. It takes
    minutes. What was compiled before and did not change is kept, so it may be interrupted and started again, and it may
    run while the robot does: new engines are taken into use together, after all of them passed the bundle's golden
    vectors. If they fail, the old ones stay, the message names the stage, and the exit code is 3.

    Precision is not chosen here. It is in the bundle: `trunkline export --half` writes float16 for GPUs.

    **Examples**

        trunkline plan bundle/

        trunkline build bundle/

        trunkline build bundle/ --bisect

        trunkline build bundle/ --version-compatible

        trunkline build bundle/ --verify-only
    """
    from trunkline.runtime.bundle import Bundle
    from trunkline.runtime.engines.cache import DEFAULT_LIMIT_BYTES, EngineCache, default_folder
    from trunkline.targets.building.here import workbench
    from trunkline.targets.building.run import build, verify_again

    bench = workbench(target)
    for concern in bench.chosen.recognition.concerns if bench.chosen.recognition else ():
        say(f"note: {concern}")
    engines = EngineCache(cache, DEFAULT_LIMIT_BYTES if cache_limit is None else int(cache_limit * GB))
    with progress_bar() as progress:
        opened = Bundle(bundle, progress=progress)
        if verify_only:
            report = verify_again(opened, bench.builder, cache=engines, bisect=bisect, progress=progress)
        else:
            wanted = bench.target(opened, version_compatible=version_compatible)
            report = build(opened, bench.builder, wanted, cache=engines, bisect=bisect, progress=progress)
    if json:
        print_json({"report": report, "cache": engines.root})
    else:
        _show(report)
        show("in use from now on: load the bundle with the back end tensorrt", "green")
        if cache is not None and cache.resolve() != default_folder():
            show(f"where it is loaded, set TRUNKLINE_ENGINES={cache.resolve()}")


def _show(report: BuildReport) -> None:
    for note in report.notes:
        say(f"note: {note}")
    parity = report.parity
    rows = [
        [
            each.stage,
            size(each.plan_bytes),
            f"compiled in {each.build_seconds:.0f} s" if each.compiled else "from the cache",
            f"{parity.tensor_differences[each.stage]:.2e}"
            if each.stage in parity.tensor_differences
            else "not compared",
        ]
        for each in report.stages
    ]
    against = f"largest difference from {parity.reference}" if parity.reference else "largest difference"
    print_table(f"engines for {report.target}: {report.library}", ["stage", "size", "engine", against], rows)
    show(
        f"{parity.decisions} decisions, a score changes by {parity.max_score_change:.2e} of the "
        f"{parity.allowed_score_change:g} allowed, no clear winner changes"
    )
