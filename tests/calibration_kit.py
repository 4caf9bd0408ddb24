"""A made-up calibration record, and bundles that carry it: what int8 looks like to whoever only reads about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.bundles import copied, edit_manifest, put
from trunkline.calibration.int8.outcome import (
    CALIBRATION_NAME,
    FORMAT,
    SCHEMA,
    Budget,
    CalibrationRecord,
    Damage,
    LayerOutcome,
    LayerPrecision,
    Proof,
    SampleSummary,
    ScorePairs,
    SearchStep,
    Sensitivity,
)
from trunkline.runtime import record

KINDS = {
    "vision": ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    "text": ("attn", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"),
    "context": ("text_pool.blocks.0.mlp.fc1", "vision_pool.blocks.0.mlp.fc1", "input_projection"),
    "action": ("layers.0.qkv", "layers.0.linear1", "layers.0.linear2"),
}
PATHS = {
    "vision": "features.trunk.blocks",
    "text": "features.model.text.transformer.resblocks",
    "context": "member",
    "action": "member",
}
TENSORS = ("features.model.text.token_embedding.weight", "features.model.text.positional_embedding")
SINGLE = "features.model.text.text_projection"
BUDGET = Budget(max_score_change=0.02, min_agreement=0.99)
DECISIONS = 200


def damage(change: float, agreement: float = 0.995) -> Damage:
    kept = round(agreement * DECISIONS)
    regret = 0.0 if kept == DECISIONS else change / 2
    return Damage(DECISIONS, change, change / 8, kept, regret / 100, regret, 0.9987)


def calibration_record(members: int = 3, blocks: int = 6, scores: int = 400) -> CalibrationRecord:
    """Six blocks a tower; block 3 of the vision tower fell back but for one layer, and so did member 1's actions."""
    random = np.random.default_rng(3)
    sizes = {"vision": blocks, "text": blocks, "context": members, "action": members}
    layers, sensitivities = [], []
    for stage, count in sizes.items():
        sensitivities.append(Sensitivity(stage, "", damage(float(random.uniform(0.002, 0.012)))))
        for index in range(count):
            block = f"{PATHS[stage]}.{index}"
            sensitivities.append(Sensitivity(stage, block, damage(float(10 ** random.uniform(-4.5, -2.2)))))
            layers += [_layer(stage, block, f"{block}.{kind}", random) for kind in KINDS[stage]]
    layers.append(_layer("text", SINGLE, SINGLE, random))
    layers += [LayerOutcome("text", name, name, "stored") for name in TENSORS]
    exact = random.normal(0.2, 0.25, scores).clip(-1, 1)
    found = exact + random.normal(0, 0.004, scores).clip(-0.018, 0.018)
    return CalibrationRecord(
        format=FORMAT,
        schema=SCHEMA,
        method="percentile 99.99",
        backend="onnxruntime 1.31.1",
        budget=BUDGET,
        samples=SampleSummary(
            "tabletop",
            256,
            DECISIONS,
            DECISIONS,
            ("00" * 8,),
            ("only 4 instructions: 20 or more are better",),
            ("cut.png",),
        ),
        layers=tuple(layers),
        sensitivities=tuple(sensitivities),
        steps=_steps({(each.stage, each.block): each.damage for each in sensitivities}),
        all_int8=damage(0.041, 0.96),
        fused=damage(0.0181),
        members=tuple(damage(0.02 + 0.01 * index, 0.98) for index in range(members)),
        proof=Proof(damage(0.0193), 0.97, 0.9722, DECISIONS, 0.9817),
        scores=ScorePairs(tuple(exact.tolist()), tuple(found.tolist())),
        cost_int8=310.5,
        cost_float32=884.0,
    )


def calibrated(bundle: Path, target: Path, made_up: CalibrationRecord | None = None) -> Path:
    """A copy of a bundle that says it was calibrated. Its stages stay float32."""
    copied(bundle, target)
    put(target, CALIBRATION_NAME, record.encode(made_up or calibration_record()))
    edit_manifest(target, lambda manifest: manifest["parity"].update(calibration=CALIBRATION_NAME))
    return target


def beyond_budget(made_up: CalibrationRecord) -> CalibrationRecord:
    return replace(made_up, fused=damage(0.03, 0.97))


def _layer(stage: str, block: str, name: str, random: np.random.Generator) -> LayerOutcome:
    precision: LayerPrecision = "int8"
    if block == "features.trunk.blocks.3" and not name.endswith("attn.qkv"):
        precision = "stored"
    elif (stage, block) == ("action", "member.1"):
        precision = "float32"
    noise = float(random.uniform(18, 42))
    return LayerOutcome(stage, block, name, precision, 64, 192, noise, 0.5 if stage == "vision" else None, 0.9993)


def _steps(alone: dict[tuple[str, str], Damage]) -> tuple[SearchStep, ...]:
    """Worded as the search words them: trials, then the blocks that were chosen, then layers that came back."""
    vision, action = ("vision", "features.trunk.blocks.3"), ("action", "member.1")
    return (
        SearchStep("all 18 blocks", "stored", damage(0.001), True, "blocks from int8 to stored: the budget holds"),
        SearchStep("the 1 most damaging blocks", "stored", damage(0.024, 0.985), False, "a score moves by 0.024"),
        SearchStep("the 2 most damaging blocks", "stored", damage(0.0172), True, "the budget holds"),
        SearchStep("vision features.trunk.blocks.3", "stored", alone[vision], True, "alone it saves 3.1 ms"),
        SearchStep("action member.1", "float32", alone[action], True, "alone it saves 0.2 ms"),
        SearchStep("vision features.trunk.blocks.3.attn.qkv", "int8", damage(0.0181), True, "a clean layer came back"),
        SearchStep("vision features.trunk.blocks.3.mlp.fc1", "int8", damage(0.0237), False, "gained too little"),
    )
