"""What `trunkline plan` estimates against what a process really takes, on this machine's processor.

    python benchmarks/memory_plan.py BUNDLE [BUNDLE ...] [--target x86-cpu] [--write docs/targets.md]

Each bundle is loaded by each back end that the target lists, in a process of its own, and run with as many instructions
and candidates as the target's profile allows. What is compared is the process's resident memory after that: anonymous
pages, and those of mapped weights that were touched. Loading may take more for a moment; that peak stands beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trunkline.calibration.samples.synthetic import frame, stream, windows
from trunkline.runtime import backends, load
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.sensor.window import SensorWindow
from trunkline.targets.plan import make_plan
from trunkline.targets.profile import Profile, profiles

MIB = 1 << 20
MEASURE = "--measure"
#: Calls with new frames and candidates, so that every buffer and cache has been used.
CALLS = 4


@dataclass(frozen=True)
class Measured:
    """Of one process, in bytes: resident at the end, and at most."""

    resident_bytes: int
    peak_bytes: int


def run_bundle(bundle: Path, backend: str, instructions: int, candidates: int) -> None:
    """Scores with the most rows, and prints what the process takes; runs in a process of its own."""
    random = np.random.default_rng(0)
    with load(bundle, backend=backend) as ensemble:
        manifest = ensemble.bundle.manifest
        known = manifest.text.instructions or tuple(f"do the task number {index}" for index in range(instructions))
        form = manifest.sensor.form if manifest.sensor else None
        for _ in range(CALLS):
            sensor = SensorWindow(stream(random, form.samples, form.channels), form.rate_hz) if form else None
            image = frame(random, 480, 640)
            histories = windows(random, candidates, manifest.actions)
            ensemble.score(image, list(known[:instructions]), histories, sensor=sensor)
        status = Path("/proc/self/status").read_text()
    sizes = dict(line.split(":", 1) for line in status.splitlines())
    print(json.dumps({"resident": _bytes(sizes["VmRSS"]), "peak": _bytes(sizes["VmHWM"])}))


def _bytes(kibibytes: str) -> int:
    return int(kibibytes.split()[0]) << 10


def measured(bundle: Path, backend: str, profile: Profile) -> Measured:
    """What a fresh process takes."""
    most = profile.most_rows
    words = [sys.executable, __file__, MEASURE, str(bundle), backend, str(most["I"]), str(most["N"])]
    text = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(text.splitlines()[-1])
    return Measured(found["resident"], found["peak"])


def row(bundle: Path, backend: str, profile: Profile) -> str:
    print(f"{bundle.name} on {backend}", file=sys.stderr)
    opened = Bundle(bundle)
    estimate = make_plan(opened, profile, backend=backend).estimate
    planned, found = estimate.running_bytes - estimate.caches_bytes, measured(bundle, backend, profile)
    size = sum(each.size for each in opened.manifest.files.values())
    ratio = planned / found.resident_bytes
    cells = [f"{value / MIB:,.0f}" for value in (size, planned, found.resident_bytes, found.peak_bytes)]
    name = "/".join(bundle.parts[-2:])
    return f"| {name} | {backend} | {' | '.join(cells)} | {ratio:.2f} |"


def main() -> None:
    if sys.argv[1:2] == [MEASURE]:
        bundle, backend, instructions, candidates = sys.argv[2:]
        run_bundle(Path(bundle), backend, int(instructions), int(candidates))
        return
    from benchmarks.full_scale import machine, write_into  # it imports torch, which is no part of what is measured

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--target", default="x86-cpu")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    profile = profiles()[options.target]
    installed = [name for name in profile.backends if backends.named(name).available() is None]
    rows = [row(bundle, backend, profile) for bundle in options.bundles for backend in installed]
    text = "\n".join(
        [
            "| bundle | back end | on disk MiB | planned MiB | resident MiB | peak MiB | planned / resident |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Machine: {machine()}. Planned without the caches, which four calls do not fill.",
        ]
    )
    print(text)
    if options.write:
        write_into(options.write, text, "memory_plan")


if __name__ == "__main__":
    main()
