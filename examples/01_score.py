"""Score candidates for one camera frame, then new candidates for the same frame.

python examples/01_score.py BUNDLE
"""

import sys

import numpy as np

from trunkline.runtime import load

random = np.random.default_rng(0)
image = random.integers(0, 256, (240, 320, 3), dtype=np.uint8)  # your camera's frame, RGB

with load(sys.argv[1]) as ensemble:
    actions = ensemble.bundle.manifest.actions
    for _ in range(2):
        candidates = random.normal(0, 1, (20, actions.history_length, actions.action_dim))
        decision = ensemble.score(image, "put the red block in the bowl", candidates)
        print(f"candidate {decision.best}: score {decision.scores[decision.best]:+.3f}, ", end="")
        print(f"members disagree by {decision.disagreement[decision.best]:.3f}")
    ran = {name: counts.runs for name, counts in ensemble.counts().items()}
    print("stage runs:", ran)  # the second call ran only the action stage
