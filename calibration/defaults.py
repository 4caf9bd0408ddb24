"""What an export does unless it is told otherwise. Imports nothing, so that ``--help`` can show it at once."""

from __future__ import annotations

#: The gate of float32: by how much a score may differ from the PyTorch ensemble's.
FLOAT32_SCORE_CHANGE = 1e-4
#: The gate of float16: rounding alone moves a score by 2e-4 to 2e-3 (docs/benchmarks.md), and every GPU sums in an
#: order of its own.
FLOAT16_SCORE_CHANGE = 5e-3

#: The budget of int8: by how much a score may move, and how many decisions must keep their winner.
INT8_SCORE_CHANGE, INT8_AGREEMENT = 0.05, 0.97
#: How many samples give ranges, how many judge, and how many prove INT8_AGREEMENT (``int8/proof.py``).
CALIBRATING_SAMPLES, JUDGING_SAMPLES, PROVING_SAMPLES = 128, 128, 1145
