"""All device profiles as a table, and what `trunkline plan` says of one bundle on each. Nothing is run.

python benchmarks/plans.py BUNDLE [--write docs/targets.md]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.full_scale import write_into
from trunkline.runtime.bundle import Bundle
from trunkline.targets.plan import Plan, make_plan
from trunkline.targets.profile import Profile, profiles

MIB, GIB = 1 << 20, 1 << 30


def profile_row(profile: Profile) -> str:
    memory = f"{profile.memory.total_bytes / GIB:.0f} GiB" + (" shared" if profile.memory.shared_with_cpu else "")
    software = "; ".join(
        each.name + (f" (TensorRT {each.tensorrt})" if each.tensorrt else "") for each in profile.software
    )
    default = ", ".join(name for name, each in profile.precisions.items() if each.use == "default") or "-"
    capability = profile.compute_capability or "-"
    return f"| `{profile.name}` | {profile.title} | {capability} | {memory} | {software} | {default} |"


def plan_row(profile: Profile, bundle: Bundle) -> str:
    if profile.unsupported is not None:
        return f"| `{profile.name}` | | | | | | not supported: {profile.unsupported} |"
    plan = make_plan(bundle, profile)
    precision = ", ".join(dict.fromkeys(each.precision for each in plan.estimate.stages))
    needed = plan.estimate
    numbers = [needed.running_bytes, needed.building_bytes, plan.memory.free_bytes]
    cells = [f"{value / MIB:,.0f}" if value else "-" for value in numbers]
    return f"| `{profile.name}` | {plan.backend} | {precision} | {' | '.join(cells)} | {verdict(plan)} |"


def verdict(plan: Plan) -> str:
    if plan.fits:
        return "fits"
    alone = [each.name for each in plan.advice if each.fits]
    if alone:
        return f"does not fit; one of these suffices: {', '.join(alone)}"
    if plan.together:
        return f"does not fit; these together suffice: {', '.join(plan.together)}"
    return "does not fit, and nothing that Trunkline knows of suffices"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    bundle, known = Bundle(options.bundle), profiles().values()
    tables = {
        "profiles": [
            "| name | device | capability | memory | software | default precision |",
            "|---|---|---|---|---|---|",
            *map(profile_row, known),
        ],
        "plans": [
            "| target | back end | precision | running MiB | building MiB | free MiB | verdict |",
            "|---|---|---|---|---|---|---|",
            *(plan_row(profile, bundle) for profile in known),
        ],
    }
    for marker, lines in tables.items():
        print("\n".join(lines))
        if options.write:
            write_into(options.write, "\n".join(lines), marker)


if __name__ == "__main__":
    main()
