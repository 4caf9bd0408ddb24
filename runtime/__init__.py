"""Scores a robot's candidate actions from a bundle, without PyTorch.

::

    from trunkline.runtime import load

    with load("bundle/") as ensemble:
        decision = ensemble.score(image, "put the red block in the bowl", histories)
        robot.execute(plans[decision.best])

``image`` is an RGB array (height, width, 3) uint8 or a PIL image, ``histories`` an array (N, steps, numbers) or a
list of (steps, numbers) arrays. What did not change since the last call is not computed again: with the same frame,
new candidates cost only the action encoder; a known instruction never runs the text tower again.

Everything raised on purpose is a :class:`TrunklineError`.
"""

from trunkline.runtime.ensemble import Decision, Ensemble, Selection, load
from trunkline.runtime.errors import TrunklineError
from trunkline.runtime.graph import CacheLimits

__all__ = ["CacheLimits", "Decision", "Ensemble", "Selection", "TrunklineError", "load"]
