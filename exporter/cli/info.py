"""``trunkline info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trunkline.exporter.cli.options import JsonOption, exporter_libraries
from trunkline.exporter.cli.output import print_json, print_table, size


def command(
    path: Annotated[Path, typer.Argument(metavar="FILE|BUNDLE", help="Checkpoint file or bundle directory.")],
    json: JsonOption = False,
) -> None:
    """Say what a checkpoint or a bundle is.

    A bundle's digests are checked on the way. Reading a checkpoint needs torch, reading a bundle does not.

    **Examples**

        trunkline info ensemble.safetensors

        trunkline info bundle/ --json
    """
    facts = describe_bundle(path) if path.is_dir() else describe_checkpoint(path)
    if json:
        print_json(facts)
        return
    print_table(str(path), ["", ""], [[key, _shown(value)] for key, value in facts.items()])


def describe_bundle(path: Path) -> dict[str, Any]:
    """Facts of a bundle, checked."""
    from trunkline.runtime.backends import described, named, names
    from trunkline.runtime.bundle import Bundle

    bundle = Bundle(path)
    manifest = bundle.manifest
    total = sum(entry.size for entry in manifest.files.values())
    text = manifest.text
    fitting = [named(name) for name in names() if named(name).VARIANT in manifest.variants]
    missing = {backend.NAME: backend.available() for backend in fitting}
    here = [described(backend) for backend in fitting if missing[backend.NAME] is None]
    return {
        "kind": f"{manifest.kind} bundle, schema {manifest.schema}",
        "digest": bundle.digest,
        "size": size(total),
        "trunk": manifest.trunk.name,
        "trunk digest": manifest.trunk.digest,
        "members": [f"{member.name} ({member.digest[:12]})" for member in manifest.members],
        "candidates": f"up to {manifest.actions.history_length} steps of {manifest.actions.action_dim}, "
        f"padding {manifest.actions.padding_value:g}, {manifest.actions.encoder} encoder",
        "sensor": manifest.sensor.form.in_words() if manifest.sensor else "none",
        "image": manifest.image.in_words(),
        "instructions": list(text.instructions) if text.baked else f"any, {text.spec.context_length} tokens",
        "stages": [
            f"{name}: {variant_name}, opset {variant.opset}, {variant.precision}"
            for name, stage in manifest.stages.items()
            for variant_name, variant in stage.variants.items()
        ],
        "parity at export": f"largest score change {manifest.parity.measured_score_change:.2g}, "
        f"{manifest.parity.winners_changed} of {manifest.parity.decisions} winners changed",
        "allowed on a device": [
            f"{variant}: scores within {gate:g} of PyTorch's" for variant, gate in manifest.parity.gates.items()
        ],
        "back ends here, fastest first": here or "none; pip install 'trunkline[cpu]'",
        "back ends not here": [f"{name}: {why.reason}" for name, why in missing.items() if why is not None] or "none",
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.producer.items()),
    }


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Facts of a checkpoint."""
    with exporter_libraries("info"):
        from trunkline.exporter.checkpoint.members import shared_settings
        from trunkline.exporter.checkpoint.read import read_checkpoint
        from trunkline.exporter.checkpoint.sensor_file import fusions
    checkpoint = read_checkpoint(path)
    first, sensor = checkpoint.members[0], shared_settings(checkpoint).sensor
    return {
        "kind": checkpoint.form,
        "size": size(path.stat().st_size),
        "backbone": checkpoint.backbone or "not stated",
        "members": [
            f"{member.name} ({size(member.parameter_bytes())}, from {member.source})" for member in checkpoint.members
        ],
        "trunk": f"width {first.shape.trunk_width}, {first.shape.patches} patches",
        "pools": f"width {first.shape.pool_width}, {first.shape.pool_layers} blocks, {first.shape.heads} heads",
        "embedding": first.shape.embedding,
        "action encoder": f"{first.shape.encoder}, {first.shape.encoder_layers} layers, "
        f"hidden {first.shape.feedforward}",
        "sensor": [sensor.in_words(), *fusions(checkpoint)] if sensor else "none",
        "candidates": f"up to {first.shape.history_length} steps of {first.shape.action_dim}, "
        f"padding {first.settings.padding_value:g}",
        "frozen trunk": checkpoint.frozen_digest or "not in the file",
        "notes": list(checkpoint.notes) or "none",
    }


def _shown(value: object) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
