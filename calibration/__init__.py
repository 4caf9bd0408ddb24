"""Samples of what the robot sees, and what is done with them.

- :func:`trunkline.calibration.dataset.read_dataset`: the published data set form;
- :func:`trunkline.calibration.evaluation.draw_decisions` and ``evaluate``: how often the right window wins.

Ranges, smoothing and the search for a mixed precision will live here too.
"""
