"""Maps of the linear layers: for each stage and each repeating path, layer kinds down and blocks across.

Rows and columns come from the names alone: ``features.trunk.blocks.3.mlp.fc1`` in block ``features.trunk.blocks.3`` is
row ``mlp.fc1``, column ``3`` of the map ``features.trunk.blocks``. Layers that are a block of their own share one map
per stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trunkline.calibration.int8.outcome import CLEANEST, CalibrationRecord, LayerOutcome, SearchStep
from trunkline.exporter.report.blocks import Cell, PrecisionMap
from trunkline.exporter.report.words import few_digits

SINGLE = "layers that do not repeat"


def precision_maps(calibration: CalibrationRecord) -> Iterator[PrecisionMap]:
    """One map for each stage and path, in the order of the layers."""
    groups: dict[tuple[str, str], list[LayerOutcome]] = {}
    for layer in calibration.layers:
        groups.setdefault((layer.stage, path_and_number(layer.block)[0]), []).append(layer)
    order = list(dict.fromkeys(stage for stage, _ in groups))
    for stage, path in sorted(groups, key=lambda group: order.index(group[0])):
        yield _map(stage, path, groups[stage, path], calibration.steps)


def path_and_number(block: str) -> tuple[str, str]:
    """``features.trunk.blocks.3`` as ``("features.trunk.blocks", "3")``; a block without number is a single layer."""
    path, _, number = block.rpartition(".")
    return (path, number) if path and number.isdigit() else (SINGLE, "")


def kind_of(layer: LayerOutcome) -> str:
    """What a layer is in its block, such as ``attn.qkv``; its whole name if it is a block of its own."""
    return layer.name.removeprefix(layer.block).strip(".") or layer.name


def reason(layer: LayerOutcome, steps: Sequence[SearchStep]) -> str:
    """Why a layer is what it is: the last step of the search that moved it there."""
    kept = [step for step in steps if step.kept and concerns(step, layer)]
    together = [step for step in steps if kept and step.kept and step.what.endswith(CLEANEST)]
    fitting = [step for step in kept if step.to == layer.precision] or together or kept
    if fitting:
        return f"{fitting[-1].why}; largest score change {few_digits(fitting[-1].damage.max_score_change)}"
    return "as the search began; nothing moved it"


def concerns(step: SearchStep, layer: LayerOutcome) -> bool:
    """True if a step is about a layer. It may name the layer, its block or its stage, the stage in front or not."""
    *stage, what = step.what.replace("/", " ").replace(":", " ").split() or [""]
    if any(word != layer.stage for word in stage):
        return False
    return what in (layer.name, layer.block, layer.stage)


def _map(stage: str, path: str, layers: Sequence[LayerOutcome], steps: Sequence[SearchStep]) -> PrecisionMap:
    rows = dict.fromkeys(kind_of(layer) for layer in layers)
    columns = dict.fromkeys(path_and_number(layer.block)[1] for layer in layers)
    placed = {(kind_of(layer), path_and_number(layer.block)[1]): layer for layer in layers}
    cells = []
    for row in rows:
        found = (placed.get((row, column)) for column in columns)
        cells.append((row, [None if layer is None else _cell(layer, steps) for layer in found]))
    return PrecisionMap(stage, path, list(columns), cells)


def _cell(layer: LayerOutcome, steps: Sequence[SearchStep]) -> Cell:
    noise = "" if layer.signal_to_noise_db is None else f" ({layer.signal_to_noise_db:.1f} dB in int8)"
    return Cell(layer.precision, f"{layer.name}: {layer.precision}{noise}. Why: {reason(layer, steps)}.")
