"""What a decision costs outside the back end, the resize and the tokenizer.

    python benchmarks/overhead.py BUNDLE [--calls 500] [--write docs/benchmarks.md]

Time spent in the back end's ``run``, in the image's preprocessing and in the tokenizer is taken off each call. Measured
twice: in place, where the back end has just emptied the processor's caches of everything else, and with a back end that
only hands out stored results, which shows the runtime's own work.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.full_scale import machine, write_into
from trunkline.runtime import Ensemble, load
from trunkline.runtime import ensemble as ensemble_module
from trunkline.runtime.backends import Arrays
from trunkline.runtime.backends.onnxruntime import OnnxSession
from trunkline.targets.latency import REPHRASINGS

#: The demo's camera.
FRAME = (192, 256, 3)
CASES = (
    ("new candidates", False, REPHRASINGS[:1]),
    ("new frame", True, REPHRASINGS[:1]),
    ("new frame, 8 rephrasings", True, REPHRASINGS),
)


class Stopwatch:
    """Wraps functions and adds up what is spent in them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


@contextlib.contextmanager
def stored_results() -> Iterator[None]:
    """Makes the back end and the preprocessing return what they returned for the same shapes before."""
    run, prepare = OnnxSession.run, ensemble_module.to_pixels
    known: dict[object, Any] = {}

    def stored_run(session: OnnxSession, inputs: Arrays) -> dict[str, np.ndarray]:
        key = (session, *(value.shape for value in inputs.values()))
        if key not in known:
            known[key] = run(session, inputs)
        return dict(known[key])

    def stored_pixels(image: Any, spec: Any) -> np.ndarray:
        if "pixels" not in known:
            known["pixels"] = prepare(image, spec)
        return known["pixels"]

    OnnxSession.run, ensemble_module.to_pixels = stored_run, stored_pixels  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        OnnxSession.run, ensemble_module.to_pixels = run, prepare  # type: ignore[method-assign]


def measure(ensemble: Ensemble, apart: Stopwatch, moving: bool, instructions: list[str], calls: int) -> list[float]:
    """Milliseconds of overhead per call, without the first tenth of the calls."""
    random = np.random.default_rng(0)
    actions = ensemble.bundle.manifest.actions
    image = random.integers(0, 256, FRAME, dtype=np.uint8)
    spent = []
    for _ in range(calls):
        image = random.integers(0, 256, FRAME, dtype=np.uint8) if moving else image
        histories = random.normal(0, 1, (20, actions.history_length, actions.action_dim)).astype(np.float32)
        before = apart.seconds
        started = time.perf_counter()
        ensemble.score(image, instructions, histories)
        spent.append((time.perf_counter() - started - (apart.seconds - before)) * 1e3)
    return spent[calls // 10 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    apart = Stopwatch()
    ensemble_module.to_pixels = apart.around(ensemble_module.to_pixels)  # type: ignore[assignment]
    ensemble_module.Tokenizer.__call__ = apart.around(ensemble_module.Tokenizer.__call__)  # type: ignore[method-assign]
    OnnxSession.run = apart.around(OnnxSession.run)  # type: ignore[method-assign]
    lines = [f"Machine: {machine()}.", "", "| call, 20 candidates | in place, median | p90 | own work, median | p90 |"]
    lines.append("|---|---|---|---|---|")
    with load(arguments.bundle, backend="onnxruntime") as ensemble:
        for name, moving, instructions in CASES:
            cells = []
            for stored in (False, True):
                with stored_results() if stored else contextlib.nullcontext():
                    spent = measure(ensemble, apart, moving, list(instructions), arguments.calls)
                cells += [f"{value:.3f} ms" for value in np.percentile(spent, (50, 90))]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if arguments.write:
        write_into(arguments.write, "\n".join(lines), "overhead")


if __name__ == "__main__":
    main()
