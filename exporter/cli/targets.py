"""``trunkline targets``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from trunkline.exporter.cli.options import JsonOption
from trunkline.exporter.cli.output import print_json, print_table, show

if TYPE_CHECKING:
    from trunkline.targets.detect import Recognition
    from trunkline.targets.errors import TargetError
    from trunkline.targets.machine import Machine
    from trunkline.targets.profile import Profile


def command(
    target: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Argument(metavar="[TARGET]", help="Name of a profile to print, to read it or to start one of your own."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the devices that bundles are planned and built for, and say which one this machine is.

    Your own profiles lie in ~/.config/trunkline/targets/, in the same form as one that is printed.

    **Examples**

        trunkline targets

        trunkline targets jetson-orin-nano-8gb > mine.json
    """
    from trunkline.targets.profile import named, profiles

    known = profiles()
    if target is not None:
        print_json(named(target, known), indent=1)
        return
    machine, found = _this_machine(known)
    if json:
        _print_json(known, machine, found)
    else:
        _print(known, found)


def _this_machine(known: Mapping[str, Profile]) -> tuple[Machine, Recognition | TargetError]:
    """This machine, and its profile or why it has none."""
    from trunkline.targets.detect import recognise
    from trunkline.targets.errors import TargetError
    from trunkline.targets.machine import look

    machine = look()
    try:
        return machine, recognise(machine, known)
    except TargetError as error:  # the list is what was asked for
        return machine, error


def _print_json(known: Mapping[str, Profile], machine: Machine, found: Recognition | TargetError) -> None:
    recognised = None
    if not isinstance(found, Exception):
        recognised = {"target": found.profile.name, "exact": found.exact, "how": found.how, "concerns": found.concerns}
    print_json(
        {
            "machine": machine,
            "recognised": recognised,
            "unrecognised": str(found) if isinstance(found, Exception) else None,
            "profiles": list(known.values()),
        }
    )


def _print(known: Mapping[str, Profile], found: Recognition | TargetError) -> None:
    here = None if isinstance(found, Exception) else found.profile.name
    rows = [_row(profile, profile.name == here) for profile in known.values()]
    print_table("targets", ["name", "device", "memory", "for a bundle"], rows)
    if isinstance(found, Exception):
        show(str(found), "yellow")
        return
    show(f"this machine: {found.profile.name}" + ("" if found.exact else ", the nearest there is"), "bold")
    show("\n".join(f"  {line}" for line in found.how))
    for concern in found.concerns:
        show(f"  but: {concern}", "yellow")


def _row(profile: Profile, here: bool) -> list[str]:
    memory = profile.memory
    return [
        profile.name + (" *" if here else ""),
        profile.title if profile.unsupported is None else f"{profile.title}: not supported",
        f"{memory.total_bytes / 2**30:.0f} GiB" + (" shared" if memory.shared_with_cpu else ""),
        f"{memory.free_bytes / 2**30:.1f} GiB" if profile.unsupported is None else "-",
    ]
