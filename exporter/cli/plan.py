"""``trunkline plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.exporter.cli.options import BackendOption, BundleArgument, JsonOption
from trunkline.exporter.cli.output import print_json, print_table, progress_bar, show

if TYPE_CHECKING:
    from trunkline.targets.detect import Recognition
    from trunkline.targets.plan import Plan

TargetOption = Annotated[
    str,
    typer.Option("--target", metavar="TARGET", help="auto for this machine, a name, or a profile's file."),
]


def command(
    bundle: BundleArgument, target: TargetOption = "auto", backend: BackendOption = None, json: JsonOption = False
) -> None:
    """Say what of a bundle will run in which precision on a device, whether it fits, and what to do if it does not.

    Nothing is built and nothing runs. Exits with 1 if the bundle does not fit or cannot run there as it is.

    **Examples**

        trunkline plan bundle/

        trunkline plan bundle/ --target jetson-orin-nano-8gb
    """
    from trunkline.runtime.bundle import Bundle
    from trunkline.targets.detect import choose
    from trunkline.targets.plan import make_plan

    chosen = choose(target)
    with progress_bar() as progress:
        opened = Bundle(bundle, progress=progress)
    plan = make_plan(opened, chosen.profile, backend=backend, machine=chosen.machine)
    if json:
        print_json(
            {
                "plan": plan,
                "ready": plan.ready,
                "image": opened.manifest.image,
                "this_machine": _facts(chosen.recognition),
            }
        )
    else:
        _show_recognition(chosen.recognition)
        show(f"images: {opened.manifest.image.in_words()}")
        _show(plan)
    if not plan.ready:
        raise typer.Exit(1)


def _facts(recognition: Recognition | None) -> dict[str, object] | None:
    if recognition is None:
        return None
    return {"exact": recognition.exact, "how": recognition.how, "concerns": recognition.concerns}


def _show_recognition(recognition: Recognition | None) -> None:
    if recognition is None:
        return
    show("this machine: " + "; ".join(recognition.how))
    for concern in recognition.concerns:
        show(f"but: {concern}", "yellow")


def _show(plan: Plan) -> None:
    needed = plan.estimate
    rows = [
        [each.stage, each.variant, each.precision, _mib(each.weights_bytes), _mib(each.activations_bytes)]
        for each in needed.stages
    ]
    title = f"{plan.target}, {plan.backend}"
    print_table(title, ["stage", "variant", "precision", "weights MiB", "values MiB"], rows)
    rows = [
        ["stages", _mib(sum(each.weights_bytes + each.activations_bytes for each in needed.stages))],
        ["process and libraries", _mib(needed.process_bytes)],
        ["scratch of kernels", _mib(needed.scratch_bytes)],
        ["caches, at most", _mib(needed.caches_bytes)],
        ["running", _mib(needed.running_bytes)],
        *([["building, at its peak", _mib(needed.building_bytes)]] if needed.building_bytes else []),
        [f"free, says {plan.memory.source}", _mib(plan.memory.free_bytes)],
    ]
    print_table("memory", ["", "MiB"], rows)
    spare = plan.memory.free_bytes - needed.peak_bytes
    show(f"fits: {_mib(spare)} MiB to spare" if plan.fits else f"does not fit: {_mib(-spare)} MiB too much", "bold")
    for each in plan.missing:
        show(f"missing: {each}", "bold red")
    for each in plan.notes:
        show(f"note: {each}")
    if not plan.fits:
        _show_advice(plan)


def _show_advice(plan: Plan) -> None:
    show("what to do, each by itself:" if plan.advice else "nothing that Trunkline knows of would save memory")
    for each in plan.advice:
        verdict = "fits then" if each.fits else f"still {_mib(each.peak_bytes - plan.memory.free_bytes)} MiB too much"
        show(f"  {each.name}: saves {_mib(each.saves_bytes)} MiB, {verdict}\n    {each.what}")
    if plan.together:
        show(f"together these suffice: {', '.join(plan.together)}")
    elif plan.advice and not any(each.fits for each in plan.advice):
        show("all of it together does not suffice")


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f}"
