"""What each float32 island of the half-precision variant is worth, in true half arithmetic on a CPU.

Islands: the vision stage is traced at the opset of the ``trt`` variant, converted with one island less or more than
``calibration/half.py`` has, and run by ``tests/half_kit.py``, whose docstring says what "fused" and "stepwise" kernels
are. Three trunks: the demo's; the demo's with giant channels, as large trained towers have them; and the published
width and number of patches with four random blocks and giants. Scores are those of the demo's trained heads, in
float32, on the stage's output. Stages: the demo with only some stages in half.

    python benchmarks/half_islands.py [--write docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "demo"))

from dataset import samples
from world import render

from benchmarks.full_scale import write_into
from tests.half_kit import HalfEvaluator, with_giants
from trunkline.calibration.half import COMPARISON, ISLANDS, Island, to_half
from trunkline.calibration.half_ranges import largest_values
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.reference import fuse
from trunkline.exporter.stages.action import ActionStage
from trunkline.exporter.stages.context import ContextStage
from trunkline.exporter.stages.towers import TextStage, VisionStage
from trunkline.exporter.stages.trace import Contract, capture, save
from trunkline.exporter.stages.trt import lower_for_trt
from trunkline.exporter.trunk import Trunk, load_trunk
from trunkline.runtime import fusion
from trunkline.runtime.manifest import TensorSpec

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo"
KERNELS = ("fused", "stepwise")
DECISIONS, CANDIDATES, FRAMES = 6, 16, 1

#: Not islands; the table shows why.
TRIED = (
    Island("softmax", "", operators=frozenset({"Softmax"})),
    Island("GELU", "", operators=frozenset({"Gelu"})),
)


@dataclass(frozen=True)
class Case:
    """A trunk to measure on: its stage in float32 and half, the inputs, and who scores the outputs."""

    name: str
    program: torch.export.ExportedProgram
    contract: Contract
    pixels: NDArray[np.uint8]
    scorer: Scorer | None


class Scorer:
    """The demo's heads on given patches: one decision per frame."""

    def __init__(self, ensemble: PyTorchEnsemble, instructions: Sequence[str], windows: NDArray[np.float32]) -> None:
        self._ensemble, self._windows = ensemble, windows
        blank = np.zeros((32, 32, 3), np.uint8)
        self._tokens = [ensemble.features(blank, [instruction])[1] for instruction in instructions]

    def scores(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, P, D) -> (B, N)."""
        rows = []
        for row, tokens in zip(torch.from_numpy(patches), self._tokens, strict=True):
            context, action = self._ensemble.embed(row[None], tokens, self._windows)
            rows.append((fuse(list(context)) @ fuse(list(action)).T)[0].numpy())
        return np.stack(rows)


def vision_contract(trunk: Trunk) -> Contract:
    image = TensorSpec("pixels", "uint8", ("B", trunk.image.height, trunk.image.width, 3))
    return Contract("vision", (image,), TensorSpec("patches", "float32", ("B", trunk.patches, trunk.width)))


def case(name: str, trunk: Trunk, pixels: NDArray[np.uint8], scorer: Scorer | None) -> Case:
    contract = vision_contract(trunk)
    return Case(name, capture(VisionStage(trunk), contract), contract, pixels, scorer)


@dataclass(frozen=True)
class Demo:
    """The demo's ensemble and decisions: a frame and an instruction each, all with the same candidates."""

    ensemble: PyTorchEnsemble
    pixels: NDArray[np.uint8]
    instructions: list[str]
    windows: NDArray[np.float32]


def demo(giants: bool) -> Demo:
    chosen = list(samples("held-out", 7, DECISIONS))
    windows = np.stack([sample.window for sample in samples("held-out", 8, CANDIDATES)]).astype(np.float32)
    read = [read_checkpoint(path) for path in sorted((DEMO / "members").glob("*.safetensors"))]
    members = tuple(replace(each.members[0], name=f"member_{index}") for index, each in enumerate(read))
    trunk = load_trunk(f"local-dir:{DEMO / 'trunk'}")
    height, width = trunk.image.height, trunk.image.width
    pixels = np.stack([resized(render(sample.scene), height, width) for sample in chosen])
    if giants:
        with_giants(trunk.model, normalised(pixels))
    ensemble = PyTorchEnsemble(trunk, Checkpoint(form="parts", members=members, backbone=trunk.name))
    return Demo(ensemble, pixels, [sample.instruction for sample in chosen], windows)


def demo_case(name: str, giants: bool) -> Case:
    found = demo(giants)
    scorer = Scorer(found.ensemble, found.instructions, found.windows)
    return case(name, found.ensemble.trunk, found.pixels, scorer)


def stage_rows(folder: Path) -> list[list[str]]:
    """Largest change of a score of the demo, by the stages that are half."""
    found = demo(giants=False)
    graphs = write_stages(found, folder)
    single = decide(found, {name: HalfEvaluator(paths["float32"]) for name, paths in graphs.items()})
    rows = []
    for halves in (("vision",), ("text",), ("context",), ("action",), ("vision", "text"), tuple(graphs)):
        cells = []
        for kernels in KERNELS:
            evaluators = {
                name: HalfEvaluator(paths["float16" if name in halves else "float32"], kernels)
                for name, paths in graphs.items()
            }
            scores = decide(found, evaluators)
            changed = int((scores.argmax(1) != single.argmax(1)).sum())
            cells += [f"{np.abs(scores - single).max():.1e}", f"{changed} of {len(scores)}"]
        rows.append([" and ".join(halves) if len(halves) < 4 else "all four", *cells])
        print(*rows[-1], sep="\t", file=sys.stderr, flush=True)
    return rows


def write_stages(found: Demo, folder: Path) -> dict[str, dict[str, Path]]:
    """Graphs of all four stages, by stage and precision."""
    trunk, members = found.ensemble.trunk, found.ensemble.members
    shape = found.ensemble.checkpoint.members[0].shape
    tokens = TensorSpec("tokens", "float32", ("I", trunk.context_length, trunk.width))
    frame = TensorSpec("patches", "float32", (1, trunk.patches, trunk.width))
    windows = TensorSpec("history", "float32", ("N", shape.history_length, shape.action_dim))
    context = TensorSpec("context", "float32", (len(members), "I", shape.embedding))
    action = TensorSpec("action", "float32", (len(members), "N", shape.embedding))
    ids = TensorSpec("ids", "int64", ("I", trunk.context_length))
    modules = [
        (VisionStage(trunk), vision_contract(trunk)),
        (TextStage(trunk), Contract("text", (ids,), tokens)),
        (ContextStage(members), Contract("context", (frame, tokens), context)),
        (ActionStage(members), Contract("action", (windows,), action)),
    ]
    graphs: dict[str, dict[str, Path]] = {}
    for module, contract in modules:
        program = capture(module, contract)
        for precision in ("float32", "float16"):
            model = lower_for_trt(program, contract)
            if precision == "float16":
                to_half(model)
            save(model, contract, folder, precision, precision)
            graphs.setdefault(contract.name, {})[precision] = folder / contract.name / f"{precision}.onnx"
    return graphs


def decide(found: Demo, stages: dict[str, HalfEvaluator]) -> NDArray[np.float32]:
    """Scores (decisions, candidates) by the runtime's own fusion."""
    trunk = found.ensemble.trunk
    ids = trunk.tokenizer(found.instructions, context_length=trunk.context_length).numpy()
    patches, tokens = stages["vision"].run({"pixels": found.pixels}), stages["text"].run({"ids": ids})
    action = stages["action"].run({"history": found.windows})
    rows = []
    for index in range(len(patches)):
        feed = {"patches": patches[index : index + 1], "tokens": tokens[index : index + 1]}
        rows.append(fusion.fuse(stages["context"].run(feed), action)[0][0])
    return np.stack(rows)


def resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def normalised(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """As all three trunks want it: (B, 3, height, width), -1 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def wide_case() -> Case:
    """Four blocks of the published vision tower (width 1024, 576 patches), random weights, giants of 1400."""
    torch.manual_seed(0)
    tower = timm.create_model("vit_large_patch16_siglip_384", num_classes=0, depth=4).float().eval()
    config = open_clip.get_model_config("ViT-L-16-SigLIP2-384")
    model = WithVisual(tower, int(config["vision_cfg"]["image_size"]))
    frames = [render(sample.scene) for sample in samples("held-out", 7, FRAMES)]
    pixels = np.stack([resized(frame, 384, 384) for frame in frames])
    with_giants(model, normalised(pixels), 1400.0, (3, 17, 400, 801))
    stage = VisionStage(AsTrunk(model))  # type: ignore[arg-type]
    image = TensorSpec("pixels", "uint8", ("B", 384, 384, 3))
    contract = Contract("vision", (image,), TensorSpec("patches", "float32", ("B", 576, 1024)))
    return Case("width 1024 with giants", capture(stage, contract), contract, pixels, None)


class WithVisual(torch.nn.Module):
    """What the stage reads of an open_clip model."""

    def __init__(self, tower: Any, size: int) -> None:
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.trunk = tower
        self.visual.image_size = (size, size)


class AsTrunk:
    def __init__(self, model: WithVisual) -> None:
        self.model = model
        self.image = type("Image", (), {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})


def variants() -> dict[str, tuple[Island, ...]]:
    """Sets of islands by the name of a row."""
    here = [each for each in ISLANDS if each is not COMPARISON]  # the vision stage compares nothing
    without = {f"without {each.name}": tuple(other for other in ISLANDS if other is not each) for each in here}
    extra = {f"and {each.name}": (*ISLANDS, each) for each in TRIED}
    return {"all islands": ISLANDS} | without | {"no island": ()} | extra


def measure(each: Case, folder: Path) -> dict[str, list[str]]:
    """Cells of a case's table by row; also prints how large its values are."""
    single = lower_for_trt(each.program, each.contract)
    save(single, each.contract, folder, "single", "float32")
    graph = folder / "vision" / "single.onnx"
    feed = {"pixels": each.pixels}
    largest = largest_values(graph, [feed])
    reference = HalfEvaluator(graph).run(feed)
    scores = each.scorer.scores(reference) if each.scorer else None
    print(f"{each.name}: values reach {max(largest.values()):.0f}", file=sys.stderr, flush=True)
    rows = {}
    for name, islands in variants().items():
        model = lower_for_trt(each.program, each.contract)
        report = to_half(model, islands=islands, largest=largest)
        save(model, each.contract, folder, "half", "float16")
        cells = [str(report.casts)]
        for kernels in KERNELS:
            found = HalfEvaluator(folder / "vision" / "half.onnx", kernels).run(feed)
            cells += shown(found, reference, None if each.scorer is None else each.scorer.scores, scores)
        rows[name] = cells
        print(name, *cells, sep="\t", file=sys.stderr, flush=True)
    return rows


def shown(found: NDArray[Any], reference: NDArray[Any], scorer: Any, scores: NDArray[Any] | None) -> list[str]:
    """1 - cosine, mean over rows, and, with heads, the largest change of a score."""
    columns = 1 if scorer is None else 2
    if not (np.isfinite(found).all() and np.linalg.norm(found, axis=-1).all()):
        return ["NaN"] * columns
    a, b = found.astype(np.float64), reference.astype(np.float64)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    cells = [f"{(1 - cosines).mean():.1e}"]
    return cells if scorer is None else [*cells, f"{np.abs(scorer(found) - scores).max():.1e}"]


def markdown(tables: dict[str, dict[str, list[str]]], stages: list[list[str]]) -> str:
    heads = [f"{kernels}: {what}" for kernels in KERNELS for what in ("score", "winners changed")]
    lines = ["| demo, stages in half | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(row) + " |" for row in stages] + [""]
    for name, rows in tables.items():
        scored = len(next(iter(rows.values()))) == 5
        heads = [f"{kernels}: {what}" for kernels in KERNELS for what in ("1 - cosine", "score")[: 1 + scored]]
        lines += [f"| {name} | casts | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
        lines += [f"| {row} | " + " | ".join(cells) + " |" for row, cells in rows.items()]
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    tables = {}
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(4)]
        stages = stage_rows(folders.pop())
        for each in (demo_case("demo", False), demo_case("demo with giants", True), wide_case()):
            tables[each.name] = measure(each, folders.pop())
    print(markdown(tables, stages))
    if arguments.write:
        write_into(arguments.write, markdown(tables, stages), "half_islands")


if __name__ == "__main__":
    main()
