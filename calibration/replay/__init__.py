"""Replay logs, judged again: by another bundle, or kept as samples for calibration.

::

    log = ReplayLog("logs/today")
    with load("bundle/") as ensemble:
        report = replay(log, ensemble)
    print(report.comparison, report.moved)

    promote(log, Path("samples"))  # trunkline export --calibrate samples/dataset.json
"""

from trunkline.calibration.replay.again import Moved, ReplayReport, replay
from trunkline.calibration.replay.promote import EpisodeRule, Promotion, promote

__all__ = ["EpisodeRule", "Moved", "Promotion", "ReplayReport", "promote", "replay"]
