"""What users import changes on purpose only."""

import trunkline.runtime


def test_the_runtime_shows_these_names() -> None:
    names = ["CacheLimits", "Decision", "Ensemble", "Selection", "TrunklineError", "load"]
    assert sorted(trunkline.runtime.__all__) == names
    assert all(hasattr(trunkline.runtime, name) for name in names)
