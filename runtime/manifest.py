"""``manifest.json``: what a bundle is, as frozen records, read strictly.

The format is described, with the reason for every rule, in docs/bundle.md. Reading refuses unknown fields; checking
compares every statement with every other (names, shapes along the graph, files), and reports all differences.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trunkline.runtime import record
from trunkline.runtime.errors import BundleError
from trunkline.runtime.files import ambiguous, name_problem, sha256_of
from trunkline.runtime.image import MAX_PIXELS, ImageSpec
from trunkline.runtime.record import shown
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.text import TextSpec

FORMAT = "trunkline-bundle"
SCHEMA = 1
MANIFEST_NAME = "manifest.json"

#: No stage of a bundle comes near these; they keep a forged manifest from asking for absurd buffers.
MAX_FILE_BYTES = 1 << 40
MAX_DIMENSION = 1 << 20
MAX_ELEMENTS = 1 << 28
MAX_RANK = 8
MAX_WINDOW = 1 << 16  # numbers of one candidate
MAX_MEMBERS = 256
MAX_FILES = 1024
#: Scores are cosines.
MAX_GATE = 2.0
MAX_FLOAT32 = 3.4028234663852886e38

#: Forms of a stage: for processors, and for GPUs.
CPU_VARIANT, TRT_VARIANT = "cpu", "trt"

#: The varying dimension of a sensor window in blocks, and how few a call may have: the first one, and two more.
BLOCKS, FEWEST_BLOCKS = "Q", 3

DType = Literal["uint8", "int64", "float32"]


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor at a stage's boundary. A letter in ``shape`` is a dimension that may vary."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


def fewest(letter: str) -> int:
    """The smallest size that a varying dimension has in a call."""
    return FEWEST_BLOCKS if letter == BLOCKS else 1


@dataclass(frozen=True)
class Variant:
    """One compiled form of a stage: an ONNX file, and the file of its large tensors if it has any."""

    graph: str
    weights: str | None
    opset: int
    precision: str


@dataclass(frozen=True)
class Stage:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: dict[str, Variant]


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 in lower-case hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class MemberEntry:
    """A head: unique name, the file it came from, SHA-256 over its tensors."""

    name: str
    source: str
    digest: str


@dataclass(frozen=True)
class TrunkEntry:
    """The frozen encoder: open_clip name, SHA-256 over its weights, token width D, patch count P."""

    name: str
    digest: str
    width: int
    patches: int


@dataclass(frozen=True)
class ActionsEntry:
    """Candidate windows: H steps of A numbers; a step whose component 0 equals ``padding_value`` is padding.

    ``encoder`` "mlp" reads padding as numbers, "transformer" masks it.
    """

    history_length: int
    action_dim: int
    padding_value: float
    encoder: Literal["transformer", "mlp"]


@dataclass(frozen=True)
class TextEntry:
    """Instructions: how they are tokenised, or, if baked, which ones there are.

    Exactly one of ``tokenizer`` (a tokenizers JSON file) and ``baked`` (a safetensors file with ``tokens``,
    one (L, D) block per entry of ``instructions``) is set.
    """

    spec: TextSpec
    tokenizer: str | None = None
    baked: str | None = None
    instructions: tuple[str, ...] = ()


@dataclass(frozen=True)
class SensorEntry:
    """A fast sensor: the stream its encoders were trained on, and their sizes.

    Attributes:
        form: the stream, and how windows are cut from it.
        encoders: J, distinct encoders; members may share one.
        encoder_of: which encoder each member reads, None for a member without a sensor.
        stride: samples between two steps behind the convolutions.
        width: W of those steps.
        features: S, numbers per window and encoder.
        absent: a safetensors file with ``absent`` (J, 1, S), what stands for the features where there is no sensor;
            None where nothing does, so that a window is always needed.
    """

    form: SensorForm
    encoders: int
    encoder_of: tuple[int | None, ...]
    stride: int
    width: int
    features: int
    absent: str | None = None

    @property
    def blocks(self) -> int:
        """M: steps behind the convolutions, and blocks of ``stride`` samples in a window."""
        return -(-self.form.steps // self.stride)


@dataclass(frozen=True)
class ParityEntry:
    """What the exporter measured on the golden vectors, and the gate a device must pass.

    Attributes:
        golden: safetensors file with inputs and the PyTorch ensemble's outputs.
        instructions: what the golden frames are scored under.
        gates: largest allowed difference of a score, by variant: what runs in half precision cannot keep to what
            float32 keeps to. Decisions whose two best scores are closer than twice that may change their winner.
        measured_score_change: largest difference found at export, in the variant of the exporting machine.
        decisions: how many were compared at export.
        winners_changed: how many changed their winner although their margin was larger.
        calibration: JSON file that says how int8 layers were chosen, None where all stages are float32.
    """

    golden: str
    instructions: tuple[str, ...]
    gates: dict[str, float]
    measured_score_change: float
    decisions: int
    winners_changed: int
    calibration: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The whole manifest; field by field in docs/bundle.md."""

    format: str
    schema: int
    kind: Literal["verifier"]
    embedding: int
    trunk: TrunkEntry
    members: tuple[MemberEntry, ...]
    actions: ActionsEntry
    image: ImageSpec
    text: TextEntry
    stages: dict[str, Stage]
    parity: ParityEntry
    producer: dict[str, str]
    files: dict[str, FileEntry]
    sensor: SensorEntry | None = None

    @property
    def variants(self) -> frozenset[str]:
        """Those that every stage has: a back end runs one variant of all of them."""
        return frozenset.intersection(*(frozenset(stage.variants) for stage in self.stages.values()))

    def referenced(self) -> list[str]:
        """Every file the manifest uses, in a stable order."""
        names = [self.parity.golden, self.parity.calibration, self.text.tokenizer, self.text.baked]
        names += [self.sensor.absent] if self.sensor else []
        for stage in self.stages.values():
            for variant in stage.variants.values():
                names += [variant.graph, variant.weights]
        return [name for name in names if name is not None]


def list_files(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with size and digest of every file it uses, read from a bundle that is being written."""
    entries = {}
    for name in manifest.referenced():
        path = folder / name
        path.chmod(0o644)
        entries[name] = FileEntry(path.stat().st_size, sha256_of(path))
    return replace(manifest, files=entries)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes ``manifest.json`` into a bundle that is being written."""
    (folder / MANIFEST_NAME).write_bytes(record.encode(manifest))


def member_name_problem(name: str) -> str | None:
    """Why a member may not be called ``name``, or None if it may."""
    return "holds a slash" if "/" in name else name_problem(name)


def shown_problem(text: str) -> str | None:
    """Why a person may not be shown ``text``, which must not steer the terminal, or None if it may."""
    return None if text.isprintable() else "holds characters that cannot be shown"


def draft_problems(draft: Manifest) -> list[str]:
    """What would make a manifest unreadable, of one that is complete but for its stages and files."""
    return record.differences(draft) or list(_stated_problems(draft))


def read_manifest(text: bytes, where: object) -> Manifest:
    """Reads and checks a manifest.

    Raises:
        BundleError: listing every difference from the format.
    """
    try:
        content = record.parse(text)
        _check_version(content, where)
        manifest = record.build(content, Manifest)
    except record.RecordError as error:
        raise BundleError(
            "the manifest is malformed",
            where=where,
            expected=f"{FORMAT}, schema {SCHEMA} (docs/bundle.md)",
            found=error.differences,
            fix="copy the bundle again, or export it again",
        ) from error
    problems = list(_problems(manifest))
    if problems:
        raise BundleError(
            "the manifest contradicts itself",
            where=where,
            found=record.shortened(problems),
            fix="export the bundle again",
        )
    return manifest


def _check_version(content: object, where: object) -> None:
    found = {key: content.get(key) for key in ("format", "schema")} if isinstance(content, dict) else {}
    if found == {"format": FORMAT, "schema": SCHEMA}:
        return
    schema = found.get("schema")
    newer = isinstance(schema, int) and schema > SCHEMA
    raise BundleError(
        "the bundle is of a newer schema than this runtime reads" if newer else "this is not a bundle's manifest",
        where=where,
        expected=f"format {FORMAT!r}, schema {SCHEMA}",
        found=f"format {shown(found.get('format'))}, schema {shown(found.get('schema'))}",
        fix="update trunkline on this machine" if newer else "point at the directory that `trunkline export` wrote",
    )


def _problems(manifest: Manifest) -> Iterator[str]:
    yield from _file_problems(manifest)
    yield from _stated_problems(manifest)
    shapes = [problem for stage in manifest.stages.items() for problem in _tensor_problems(*stage)]
    yield from shapes or _graph_problems(manifest)
    yield from _variant_problems(manifest)


def _stated_problems(manifest: Manifest) -> Iterator[str]:
    """Those of everything but files and stages."""
    yield from _member_problems(manifest.members)
    yield from _number_problems(manifest)
    yield from _text_problems(manifest)
    yield from _sensor_problems(manifest)
    if (manifest.text.tokenizer is None) == (manifest.text.baked is None):
        yield "text: exactly one of tokenizer and baked must be set"
    if (manifest.text.baked is None) != (not manifest.text.instructions):
        yield "text: baked tokens and their instructions must come together"


def _file_problems(manifest: Manifest) -> Iterator[str]:
    if len(manifest.files) > MAX_FILES:
        yield f"{len(manifest.files)} files; there may be {MAX_FILES}"
        return
    for name, entry in manifest.files.items():
        if problem := name_problem(name):
            yield f"file name {shown(name)} {problem}"
        if not 0 <= entry.size <= MAX_FILE_BYTES:
            yield f"{shown(name)}: size {shown(entry.size)} is out of range"
        if not re.fullmatch("[0-9a-f]{64}", entry.sha256):
            yield f"{shown(name)}: sha256 is not 64 lower-case hex digits"
    yield from (f"file names are the same on some systems: {pair}" for pair in ambiguous(list(manifest.files)))
    if MANIFEST_NAME in manifest.files:
        yield "the manifest lists itself"
    referenced = dict.fromkeys(manifest.referenced())
    yield from (f"{shown(name)} is used but not listed in files" for name in referenced if name not in manifest.files)
    yield from (f"{shown(name)} is listed in files but not used" for name in manifest.files if name not in referenced)


def _member_problems(members: tuple[MemberEntry, ...]) -> Iterator[str]:
    if not 0 < len(members) <= MAX_MEMBERS:
        yield f"{len(members)} members; there must be 1 to {MAX_MEMBERS}"
        return
    for member in members:
        if problem := member_name_problem(member.name):
            yield f"member name {shown(member.name)} {problem}"
    yield from (f"member names are not distinct: {pair}" for pair in ambiguous([each.name for each in members]))


def _number_problems(manifest: Manifest) -> Iterator[str]:
    numbers = {
        "embedding": manifest.embedding,
        "trunk.width": manifest.trunk.width,
        "trunk.patches": manifest.trunk.patches,
        "actions.history_length": manifest.actions.history_length,
        "actions.action_dim": manifest.actions.action_dim,
        "text.spec.context_length": manifest.text.spec.context_length,
        "text.spec.vocab_size": manifest.text.spec.vocab_size,
        "image.height": manifest.image.height,
        "image.width": manifest.image.width,
    }
    wrong = [f"{name} is {shown(value)}" for name, value in numbers.items() if not 0 < value <= MAX_DIMENSION]
    yield from wrong
    if not wrong:
        yield from _size_problems(manifest)
    if not 0 <= manifest.image.fill <= 255:
        yield f"image.fill is {shown(manifest.image.fill)}, not 0 to 255"
    if abs(manifest.actions.padding_value) > MAX_FLOAT32:
        yield f"actions.padding_value {manifest.actions.padding_value} is no float32"


def _size_problems(manifest: Manifest) -> Iterator[str]:
    """Products of sizes that are each in range: what a call allocates must be, too."""
    actions, image = manifest.actions, manifest.image
    if actions.history_length * actions.action_dim > MAX_WINDOW:
        yield f"actions: windows of {actions.history_length} x {actions.action_dim} are more than {MAX_WINDOW} numbers"
    if image.height * image.width > MAX_PIXELS:
        yield f"image: {image.height} x {image.width} are more than {MAX_PIXELS} pixels"


def _variant_problems(manifest: Manifest) -> Iterator[str]:
    """A back end runs one variant of all stages, and is judged by the gate of that variant."""
    gates, variants = manifest.parity.gates, manifest.variants
    for name, stage in manifest.stages.items():
        if variants != set(stage.variants):
            found, common = sorted(stage.variants), sorted(variants)
            yield f"stage {shown(name)} has variants {shown(found)}, all have {shown(common)}"
    if variants != set(gates):
        yield f"parity.gates are for {shown(sorted(gates))}, the stages have {shown(sorted(variants))}"
    if not all(0 < gate <= MAX_GATE for gate in gates.values()):
        yield f"parity.gates must be positive, and at most {MAX_GATE:g}"


def _sensor_problems(manifest: Manifest) -> Iterator[str]:
    sensor = manifest.sensor
    if sensor is None:
        return
    numbers = {"encoders": sensor.encoders, "stride": sensor.stride, "width": sensor.width, "features": sensor.features}
    wrong = [f"sensor.{name} is {shown(value)}" for name, value in numbers.items() if not 0 < value <= MAX_DIMENSION]
    wrong += list(sensor.form.problems())
    if not wrong and sensor.blocks < 2:
        wrong.append(f"sensor: {sensor.form.steps} steps are one block of {sensor.stride}; there must be two")
    yield from wrong
    if not wrong and sensor.form.samples * sensor.form.channels > MAX_ELEMENTS:
        yield f"sensor: windows of {sensor.form.samples} x {sensor.form.channels} are more than {MAX_ELEMENTS} numbers"
    used = {index for index in sensor.encoder_of if index is not None}
    if len(sensor.encoder_of) != len(manifest.members) or used != set(range(min(sensor.encoders, MAX_MEMBERS))):
        yield (
            f"sensor.encoder_of {shown(list(sensor.encoder_of))} does not give each of {len(manifest.members)} members "
            f"one of {sensor.encoders} encoders or none, and each encoder a member"
        )


def _text_problems(manifest: Manifest) -> Iterator[str]:
    """What a person is shown; digests are compared and must have one spelling."""
    texts = {"trunk.name": manifest.trunk.name}
    texts |= {f"members[{index}].source": member.source for index, member in enumerate(manifest.members)}
    texts |= {f"producer[{shown(key)}]": key + value for key, value in manifest.producer.items()}
    yield from (f"{name} {problem}" for name, text in texts.items() if (problem := shown_problem(text)))
    digests = {"trunk.digest": manifest.trunk.digest}
    digests |= {f"members[{index}].digest": member.digest for index, member in enumerate(manifest.members)}
    for name, digest in digests.items():
        if not re.fullmatch("[0-9a-f]{64}", digest):
            yield f"{name} is not 64 lower-case hex digits"


def _tensor_problems(name: str, stage: Stage) -> Iterator[str]:
    name = shown(name)
    if not stage.variants:
        yield f"stage {name} has no variant"
    if len(stage.outputs) != 1:
        yield f"stage {name} has {len(stage.outputs)} outputs; one is supported"
    for tensor in stage.inputs + stage.outputs:
        sizes = [size for size in tensor.shape if isinstance(size, int)]
        letters = [size for size in tensor.shape if isinstance(size, str)]
        # The product comes last: of thousands of huge integers it would take minutes.
        out_of_range = len(tensor.shape) > MAX_RANK or any(not 0 < size <= MAX_DIMENSION for size in sizes)
        if out_of_range or math.prod(sizes) > MAX_ELEMENTS:
            yield f"stage {name}: shape {shown(list(tensor.shape))} of {shown(tensor.name)} is out of range"
        if len(letters) > 1 or not all(re.fullmatch("[A-Z]", letter) for letter in letters):
            yield f"stage {name}: {shown(tensor.name)} may have one varying dimension, named by a capital letter"


def _graph_problems(manifest: Manifest) -> Iterator[str]:
    expected = verifier_contract(manifest)
    for name in sorted(set(manifest.stages) - set(expected)):
        yield f"stage {shown(name)} does not belong to a verifier"
    for name, (inputs, output) in expected.items():
        stage = manifest.stages.get(name)
        if stage is None:
            yield f"stage {name} is missing"
        elif (stage.inputs, stage.outputs) != (inputs, (output,)):
            yield f"stage {name} is {_signature(stage.inputs, stage.outputs)}, expected {_signature(inputs, (output,))}"


Contract = Mapping[str, tuple[tuple[TensorSpec, ...], TensorSpec]]


def verifier_contract(manifest: Manifest) -> Contract:
    """Inputs and output of every stage that a verifier of these sizes has, inputs of a stage before it."""
    image, actions, trunk = manifest.image, manifest.actions, manifest.trunk
    length, embedding, members = manifest.text.spec.context_length, manifest.embedding, len(manifest.members)
    tokens = TensorSpec("tokens", "float32", ("I", length, trunk.width))
    patches = TensorSpec("patches", "float32", ("B", trunk.patches, trunk.width))
    frame = TensorSpec("patches", "float32", (1, trunk.patches, trunk.width))
    pixels = TensorSpec("pixels", "uint8", ("B", image.height, image.width, 3))
    history = TensorSpec("history", "float32", ("N", actions.history_length, actions.action_dim))
    stages = {
        "vision": ((pixels,), patches),
        "text": ((TensorSpec("ids", "int64", ("I", length)),), tokens),
        "context": ((frame, tokens), TensorSpec("context", "float32", (members, "I", embedding))),
        "action": ((history,), TensorSpec("action", "float32", (members, "N", embedding))),
    }
    if manifest.text.baked is not None:
        del stages["text"]
    if manifest.sensor is not None:
        stages |= _sensor_contract(manifest, manifest.sensor, frame, tokens)
    return stages


def _sensor_contract(
    manifest: Manifest, sensor: SensorEntry, frame: TensorSpec, tokens: TensorSpec
) -> dict[str, tuple[tuple[TensorSpec, ...], TensorSpec]]:
    """The stages of a sensor, and the context stage that reads it."""
    samples = TensorSpec("samples", "float32", ("Q", sensor.stride, sensor.form.channels))
    steps = TensorSpec("steps", "float32", (sensor.encoders, "Q", sensor.width))
    window = TensorSpec("steps", "float32", (sensor.encoders, sensor.blocks + 1, sensor.width))
    features = TensorSpec("sensor", "float32", (sensor.encoders, 1, sensor.features))
    context = TensorSpec("context", "float32", (len(manifest.members), "I", manifest.embedding))
    return {
        "steps": ((samples,), steps),
        "sensor": ((window,), features),
        "context": ((frame, tokens, features), context),
    }


def _signature(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> str:
    return f"{_tensors(inputs)} -> {_tensors(outputs)}"


def _tensors(tensors: tuple[TensorSpec, ...]) -> str:
    few = [f"{shown(each.name)[1:-1]} {each.dtype} {list(each.shape)}" for each in tensors[:4]]
    return ", ".join([*few, *(["..."] if len(tensors) > 4 else [])])
