"""Packs training checkpoints into one ensemble file, without the backbone and without holding them in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trunkline.exporter.checkpoint.members import (
    PUBLISHED_BACKBONE,
    SENSOR_ENCODER,
    Checkpoint,
    Member,
    Settings,
    StateDict,
    misfits,
    shared_settings,
)
from trunkline.exporter.checkpoint.names import unique_names
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.checkpoint.sensor_file import read_sensor_encoder
from trunkline.exporter.checkpoint.write import check_suffix, write_checkpoint
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.progress import Progress, silent

#: Trunk width and patch count of the published backbone; only then may its name be assumed.
PUBLISHED_TRUNK = (1024, 576)


@dataclass(frozen=True)
class PackReport:
    """What packing did. Sizes in bytes."""

    output: Path
    members: tuple[str, ...]
    backbone: str
    source_bytes: int
    output_bytes: int
    notes: tuple[str, ...]


def pack(
    sources: Sequence[Path],
    output: Path,
    *,
    backbone: str | None = None,
    settings: Settings | None = None,
    sensor_encoder: Path | None = None,
    progress: Progress = silent,
) -> PackReport:
    """Writes the members of all sources, in order, into one file.

    Args:
        sources: training checkpoints or ensembles, at least one.
        output: ``.safetensors`` for our form, ``.pt`` for the published one.
        backbone: open_clip name of the trunk; by default what the sources say.
        settings: what training checkpoints leave open; published values by default.
        sensor_encoder: file with the sensor encoder of members that carry none but fuse one.
        progress: counts sources.

    Raises:
        CheckpointError: a source cannot be read, the members do not belong together (all differences listed), or
            something is stated of a sensor that no member uses.
    """
    check_suffix(Path(output))
    encoder = None if sensor_encoder is None else read_sensor_encoder(sensor_encoder)
    checkpoints = []
    for index, source in enumerate(sources):
        progress("reading checkpoints", index, len(sources))
        read = read_checkpoint(Path(source), settings=settings, sensor_encoder=encoder, progress=progress)
        checkpoints.append(read)
    progress("reading checkpoints", len(sources), len(sources))
    packed = join(checkpoints, backbone=backbone)
    _require_use(packed, settings, encoder)
    write_checkpoint(packed, Path(output))
    return PackReport(
        output=Path(output),
        members=tuple(member.name for member in packed.members),
        backbone=str(packed.backbone),
        source_bytes=sum(Path(source).stat().st_size for source in sources),
        output_bytes=Path(output).stat().st_size,
        notes=packed.notes,
    )


def _require_use(packed: Checkpoint, settings: Settings | None, encoder: StateDict | None) -> None:
    """Raises CheckpointError if what was stated of a sensor has changed nothing."""
    stated, used = settings and settings.sensor, shared_settings(packed).sensor
    problems = []
    if encoder is not None and all(_encoder(member) is not encoder for member in packed.members):
        problems.append("a sensor encoder: no member fuses a sensor and lacks its encoder")
    if stated and used is None:
        problems.append("a sensor's stream: no member has a sensor")
    elif stated and used and replace(stated, channels=used.channels) != used:
        problems.append("a sensor's stream other than the one in a source, which states its own")
    if problems:
        raise CheckpointError("something is stated that no member uses", found=problems, fix="leave it out")


def _encoder(member: Member) -> StateDict | None:
    return member.components.get(SENSOR_ENCODER)


def join(checkpoints: Sequence[Checkpoint], *, backbone: str | None = None) -> Checkpoint:
    """One ensemble of the members of all checkpoints, in order.

    Raises:
        CheckpointError: listing every way in which a member differs from the first.
    """
    members = unique_names(member for checkpoint in checkpoints for member in checkpoint.members)
    if not members:
        raise CheckpointError("cannot pack without a checkpoint", fix="name at least one file")
    differences = [f"{member.name}: {problem}" for member, problem in misfits(members)]
    differences += _trunk_differences(checkpoints)
    if differences:
        raise CheckpointError(
            "the members do not belong together",
            where=f"compared with {members[0].name}",
            expected="one trunk, one shape, one padding value, one kind of action encoder",
            found=differences,
            fix="pack only checkpoints of one training run",
        )
    return Checkpoint(
        form="packed in memory",
        members=members,
        backbone=_backbone(checkpoints, members[0], backbone),
        notes=tuple(dict.fromkeys(note for checkpoint in checkpoints for note in checkpoint.notes)),
        frozen_digest=next((each.frozen_digest for each in checkpoints if each.frozen_digest), None),
    )


def _trunk_differences(checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    digests = {each.frozen_digest: each.members[0].name for each in checkpoints if each.frozen_digest}
    if len(digests) > 1:
        yield "frozen encoder weights differ: " + ", ".join(f"{name} has {key[:12]}" for key, name in digests.items())
    names = {each.backbone: each.members[0].name for each in checkpoints if each.backbone}
    if len(names) > 1:
        yield "backbone names differ: " + ", ".join(f"{name} has {key}" for key, name in names.items())


def _backbone(checkpoints: Sequence[Checkpoint], first: Member, chosen: str | None) -> str:
    named = chosen or next((each.backbone for each in checkpoints if each.backbone), None)
    if named:
        return named
    if (first.shape.trunk_width, first.shape.patches) == PUBLISHED_TRUNK:
        return PUBLISHED_BACKBONE
    raise CheckpointError(
        "the checkpoints do not say which backbone they were trained on",
        where=first.source,
        found=f"trunk width {first.shape.trunk_width}, {first.shape.patches} patches: not the published backbone",
        fix="name it with --backbone, e.g. --backbone local-dir:FOLDER",
    )
