"""What a stage needs in memory, from its graph alone, without the onnx package and without running it.

- :mod:`~trunkline.targets.estimate.shapes`: the size of every value for given rows.
- :mod:`~trunkline.targets.estimate.needs`: weights by kind, and how much is alive at once.
- :mod:`~trunkline.targets.estimate.footprint`: what a back end makes of both, from measurements.
"""
