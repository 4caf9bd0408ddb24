"""Choose among groups of candidates: each rephrasing of the instruction proposed its own actions.

The group with the highest mean score wins, then the best candidate in it.

    python examples/02_rephrasings.py BUNDLE
"""

import sys

import numpy as np

from trunkline.runtime import load

REPHRASINGS = [
    "put the red block in the bowl",
    "place the red block into the bowl",
    "move the red cube to the bowl",
]
PER_REPHRASING = 5

random = np.random.default_rng(0)
image = random.integers(0, 256, (240, 320, 3), dtype=np.uint8)

with load(sys.argv[1]) as ensemble:
    actions = ensemble.bundle.manifest.actions
    count = len(REPHRASINGS) * PER_REPHRASING
    candidates = random.normal(0, 1, (count, actions.history_length, actions.action_dim))
    chosen = ensemble.select(image, REPHRASINGS, candidates, repeats=PER_REPHRASING)
    print(f"candidate {chosen.best} of group {chosen.group} ({chosen.instruction!r}), score {chosen.score:+.3f}")
    for instruction, mean in zip(REPHRASINGS, chosen.group_scores, strict=True):
        print(f"  {mean:+.3f}  {instruction}")
