"""The name of an engine: everything that made it.

Two engines may stand for each other only if nothing differs: neither a bit of the graph or of the weights (heads of one
architecture differ in nothing else), nor the compiler, the device, the driver or a setting. The key is a record of all
that; its digest names the engine's folder. A digest is made of text and whole numbers only, so it is the same in every
process and under every version of Python.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trunkline.runtime import record
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.engines.device import Device, Library
from trunkline.runtime.engines.settings import BuildSettings
from trunkline.runtime.errors import BackendError
from trunkline.runtime.onnx_graph import weight_file
from trunkline.runtime.record import shown

FORMAT = "trunkline-engine-key"
SCHEMA = 1

#: Goes up whenever Trunkline turns the same graph and settings into another network than before.
RECIPE = 1


@dataclass(frozen=True)
class EngineKey:
    """Everything that made an engine.

    Attributes:
        format: ``FORMAT``.
        schema: ``SCHEMA``.
        recipe: ``RECIPE`` of the Trunkline that built it.
        stage: name of the stage in its bundle.
        variant: of the stage.
        graph: SHA-256 of the stage's graph.
        weights: SHA-256 of its weight file; None if the graph holds all weights.
        library: what compiled it.
        device: what it was compiled on.
        settings: how, as far as they concern the stage.
    """

    format: str
    schema: int
    recipe: int
    stage: str
    variant: str
    graph: str
    weights: str | None
    library: Library
    device: Device
    settings: BuildSettings

    @property
    def digest(self) -> str:
        """SHA-256 over the key, 64 hex digits."""
        return digest_of(self)

    def problems(self) -> Iterator[str]:
        """What cannot be, in words."""
        if (self.format, self.schema) != (FORMAT, SCHEMA):
            yield f"key is {shown(self.format)}, schema {shown(self.schema)}, not {FORMAT}, schema {SCHEMA}"
        digests = {"graph": self.graph} | ({} if self.weights is None else {"weights": self.weights})
        for name, digest in digests.items():
            if not re.fullmatch("[0-9a-f]{64}", digest):
                yield f"key.{name} is not 64 lower-case hex digits"
        for part in (self.library, self.device, self.settings):
            yield from part.problems()

    def differences(self, other: EngineKey) -> list[str]:
        """In what another key differs, for people, this one's value first."""
        mine, others = _flat(self), _flat(other)
        return [
            f"{name}: {shown(mine.get(name))} here, {shown(others.get(name))} there"
            for name in {**mine, **others}
            if mine.get(name) != others.get(name)
        ]


def engine_key(
    files: StageFiles, settings: BuildSettings, *, variant: str, library: Library, device: Device
) -> EngineKey:
    """The key of a stage's engine.

    Args:
        files: the stage, with its weights' digest.
        settings: of the target; what does not concern the stage is left out.
        variant: of the stage that ``files`` holds.
        library: what compiles it.
        device: what it runs on.

    Raises:
        BackendError: the weights' digest is not known, so that the key would be that of any stage with such a graph.
        InputError: the settings do not fit the stage.
    """
    if files.weights_digest is None and weight_file(files.graph) is not None:
        raise BackendError(
            "an engine cannot be named without the digest of its stage's weights",
            where=f"stage {files.name}",
            expected="StageFiles.weights_digest",
            found="None, although the graph has a weight file",
            fix="open the stage through Ensemble.open_stage, which knows the manifest",
        )
    graph = hashlib.sha256(files.graph).hexdigest()
    own = settings.for_stage(files.stage)
    return EngineKey(FORMAT, SCHEMA, RECIPE, files.name, variant, graph, files.weights_digest, library, device, own)


def digest_of(content: Any) -> str:
    """SHA-256 of a record of texts and whole numbers, 64 hex digits."""
    return hashlib.sha256(record.encode(content, compact=True)).hexdigest()


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """A record's values under dotted names."""
    if not isinstance(value, EngineKey | Library | Device | BuildSettings):
        return {name: value}
    return {
        inner: leaf
        for part in value.__dataclass_fields__
        for inner, leaf in _flat(getattr(value, part), f"{name}.{part}" if name else part).items()
    }
