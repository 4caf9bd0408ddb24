"""The stages that are compiled compute what the plain PyTorch ensemble computes, in torch and as traced graphs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from tests.kit import SMALL, SMALL_MLP, random_member
from tests.trunks import PATCHES, VISION_WIDTH
from trunkline.exporter.checkpoint.members import Checkpoint, HeadShape
from trunkline.exporter.cut import unit_rows
from trunkline.exporter.export import build
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.reference import ReferenceMember, build_member, fuse
from trunkline.exporter.stages.action import ActionStage
from trunkline.exporter.stages.context import ContextStage
from trunkline.exporter.stages.towers import TextStage, VisionStage
from trunkline.exporter.stages.trace import Contract, trace
from trunkline.exporter.trunk import Trunk, load_trunk
from trunkline.runtime import fusion, record
from trunkline.runtime.errors import ExportError
from trunkline.runtime.manifest import Stage, TensorSpec

TOLERANCE = 1e-5
TEXT = 6  # positions L
STAGES = ("vision", "text", "context", "action")

SHAPES = {
    "packed": SMALL,
    "unpacked": replace(SMALL, trunk_width=48, patches=9),
    "4 heads": replace(SMALL, heads=4),
    "unpacked, 4 heads, narrow": replace(SMALL, trunk_width=24, pool_width=16, embedding=40, heads=4, patches=5),
    "one layer each": replace(SMALL, pool_layers=1, encoder_layers=1, history_length=1, action_dim=1),
    "deep and long": replace(SMALL, pool_layers=4, encoder_layers=4, history_length=31, action_dim=8),
    "mlp": SMALL_MLP,
    "mlp, unpacked, short": replace(SMALL_MLP, trunk_width=40, history_length=3, action_dim=5),
}


def members_of(shape: HeadShape, count: int = 3, padding: float = -5.0) -> list[ReferenceMember]:
    """With temperatures that differ, one of them above the clamp."""
    modules = [build_member(random_member(shape, seed, padding=padding)) for seed in range(count)]
    for index, module in enumerate(modules):
        module.text_aware_visual_extraction.temperature.fill_((0.07, 0.5, 150.0)[index % 3])
    return modules


def features(shape: HeadShape, instructions: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (1, P, D) and tokens (I, L, D), unit rows."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(1, shape.patches, shape.trunk_width, generator=generator)
    tokens = torch.randn(instructions, TEXT, shape.trunk_width, generator=generator)
    return unit_rows(patches), unit_rows(tokens)


def windows(shape: HeadShape, padding: float = -5.0, seed: int = 0) -> torch.Tensor:
    """Full, padded at the start, at the end, at both ends, in the middle, and with one real step only."""
    steps = shape.history_length
    result = torch.randn(6, steps, shape.action_dim, generator=torch.Generator().manual_seed(seed))
    third = steps // 3
    result[1, :third] = padding
    result[2, steps - third :] = padding
    result[3, :third] = result[3, steps - third :] = padding
    result[4, third : 2 * third] = padding
    result[5, : steps - 1] = padding
    return result


def reference_context(members: Sequence[ReferenceMember], patches: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.stack([member.context(patches.expand(len(tokens), -1, -1), tokens) for member in members])


def reference_action(members: Sequence[ReferenceMember], histories: torch.Tensor) -> torch.Tensor:
    return torch.stack([member.action(histories) for member in members])


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    assert float((found - expected).abs().max()) < TOLERANCE
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(found.shape[:-1]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("count", [1, 3, 5])
def test_context_equals_the_reference(shape: HeadShape, count: int) -> None:
    members = members_of(shape, count)
    patches, tokens = features(shape)
    stage = ContextStage(members)
    assert_near(stage(patches, tokens), reference_context(members, patches, tokens))
    assert_near(stage(patches, tokens[:1]), reference_context(members, patches, tokens[:1]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("count", [1, 3, 5])
def test_action_equals_the_reference(shape: HeadShape, count: int) -> None:
    members, histories = members_of(shape, count), windows(shape)
    stage = ActionStage(members)
    assert_near(stage(histories), reference_action(members, histories))
    assert_near(stage(histories[:1]), reference_action(members, histories[:1]))


@pytest.mark.parametrize("padding", [-5.0, -5.1, 0.3, 1e9])
def test_padding_is_masked_whatever_its_value(padding: float) -> None:
    """-5.1 and 0.3 are no float32 numbers: the mask compares in float32 all the same."""
    members, histories = members_of(SMALL, 2, padding), windows(SMALL, padding)
    stage = ActionStage(members)
    assert_near(stage(histories), reference_action(members, histories))
    shortened = torch.cat([histories[1, 3:], histories[1, :3]])[None]  # no positional code: padding may stand anywhere
    assert_near(stage(shortened), stage(histories[1:2]))


def test_padding_is_no_number_to_the_transformer_but_one_to_the_mlp() -> None:
    for shape, masked in ((SMALL, True), (SMALL_MLP, False)):
        histories = windows(shape)
        changed = histories.clone()
        changed[1, :3, 1:] = 9.0  # component 0 still marks the steps as padding
        stage = ActionStage(members_of(shape, 1))
        same = torch.allclose(stage(changed)[:, 1], stage(histories)[:, 1], atol=1e-6)
        assert same is masked


def test_stages_leave_the_members_as_they_were() -> None:
    members = members_of(SMALL)
    before = [{key: value.clone() for key, value in member.state_dict().items()} for member in members]
    ContextStage(members)(*features(SMALL))
    ActionStage(members)(windows(SMALL))
    for member, state in zip(members, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in member.state_dict().items())


def scores(members: Sequence[ReferenceMember], histories: torch.Tensor) -> np.ndarray:
    context = ContextStage(members)(*features(members[0].shape)).numpy()
    return fusion.fuse(context, ActionStage(members)(histories).numpy())[0]


def test_the_transformer_cannot_see_the_order_of_steps() -> None:
    histories = windows(SMALL)
    np.testing.assert_allclose(
        scores(members_of(SMALL), histories), scores(members_of(SMALL), histories.flip(1)), atol=1e-6
    )
    mlp = members_of(SMALL_MLP)
    assert np.abs(scores(mlp, histories) - scores(mlp, histories.flip(1))).max() > 1e-3


def test_fused_scores_are_not_the_mean_of_the_members_cosines() -> None:
    members, histories = members_of(SMALL), windows(SMALL)
    context, action = ContextStage(members)(*features(SMALL)), ActionStage(members)(histories)
    fused, by_member = fusion.fuse(context.numpy(), action.numpy())
    np.testing.assert_allclose(fused, (fuse(list(context)) @ fuse(list(action)).T).numpy(), atol=1e-6)
    mean = by_member.mean(axis=0)
    assert np.abs(fused - mean).max() > 1e-3


def test_towers_equal_the_trunks_features(trunk: Trunk, checkpoint: Checkpoint) -> None:
    reference = PyTorchEnsemble(trunk, checkpoint)
    pixels = np.random.default_rng(0).integers(0, 256, (trunk.image.height, trunk.image.width, 3), dtype=np.uint8)
    patches, tokens = reference.features(pixels, ["open the drawer"])
    ids = trunk.tokenizer(["open the drawer"], context_length=trunk.context_length)
    with torch.inference_mode():
        assert_near(VisionStage(trunk)(torch.from_numpy(pixels)[None]), patches)
        assert_near(TextStage(trunk)(ids), tokens)


# Traced graphs


def contracts(shape: HeadShape, count: int) -> dict[str, Contract]:
    patches = TensorSpec("patches", "float32", (1, shape.patches, shape.trunk_width))
    tokens = TensorSpec("tokens", "float32", ("I", TEXT, shape.trunk_width))
    history = TensorSpec("history", "float32", ("N", shape.history_length, shape.action_dim))
    context = TensorSpec("context", "float32", (count, "I", shape.embedding))
    action = TensorSpec("action", "float32", (count, "N", shape.embedding))
    return {
        "context": Contract("context", (patches, tokens), context),
        "action": Contract("action", (history,), action),
    }


def traced(members: Sequence[ReferenceMember], folder: Path) -> dict[str, Stage]:
    modules = {"context": ContextStage(members), "action": ActionStage(members)}
    wanted = contracts(members[0].shape, len(members))
    return {name: trace(module, wanted[name], folder) for name, module in modules.items()}


def run(graph: Path, **inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


@pytest.mark.parametrize(
    ("shape", "count", "padding"),
    [(SHAPES["unpacked"], 3, -5.1), (SHAPES["mlp"], 1, -5.0)],
    ids=["transformer", "mlp"],
)
def test_traced_graphs_equal_the_reference(tmp_path: Path, shape: HeadShape, count: int, padding: float) -> None:
    members = members_of(shape, count, padding)
    traced(members, tmp_path / "stages")
    histories = windows(shape, padding)
    for rows in (1, 2, 4):
        patches, tokens = features(shape, rows, seed=rows)
        found = run(tmp_path / "stages" / "context" / "cpu.onnx", patches=patches, tokens=tokens)
        assert_near(found, reference_context(members, patches, tokens))
        found = run(tmp_path / "stages" / "action" / "cpu.onnx", history=histories[:rows])
        assert_near(found, reference_action(members, histories[:rows]))
    found = run(tmp_path / "stages" / "action" / "cpu.onnx", history=histories)
    assert_near(found, reference_action(members, histories))


def test_a_module_that_breaks_its_contract_is_refused(tmp_path: Path) -> None:
    members = members_of(SMALL, 1)
    wanted = contracts(SMALL, 2)["action"]
    with pytest.raises(ExportError, match=r"(?s)breaks the stage's contract.*\[2, 'N', 32\].*\[1, 'N', 32\]"):
        trace(ActionStage(members), wanted, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, history: torch.Tensor) -> torch.Tensor:
            return history if history.sum() > 0 else -history

    tensor = TensorSpec("history", "float32", ("N", 2))
    with pytest.raises(ExportError, match=r"(?s)cannot trace a stage.*stage odd"):
        trace(Branching(), Contract("odd", (tensor,), replace(tensor, name="out")), tmp_path)


def graph_of(bundle: Path, stage: str) -> onnx.GraphProto:
    return onnx.load(bundle / "stages" / stage / "cpu.onnx", load_external_data=False).graph


@pytest.mark.parametrize("stage", STAGES)
def test_names_in_graphs_can_be_read(bundle: Path, stage: str) -> None:
    graph = graph_of(bundle, stage)
    assert graph.name == stage
    names = [node.name for node in graph.node]
    values = [name for node in graph.node for name in (*node.input, *node.output) if name]
    values += [tensor.name for tensor in graph.initializer]
    assert all(names)
    assert len(set(names)) == len(names)
    opaque = [name for name in names + values if name.startswith(("val_", "node_", "_", "aten")) or name.isdigit()]
    assert opaque == []
    roots = {
        "vision": "features.trunk.blocks.0",
        "text": "features.model.text",
        "context": "member.2.",
        "action": "member.0.",
    }
    assert any(name.startswith(roots[stage]) for name in names)


def test_the_vision_graph_ends_at_the_cut(bundle: Path, trunk: Trunk) -> None:
    graph = graph_of(bundle, "vision")
    depth = len(trunk.model.visual.trunk.blocks)
    assert sum(node.op_type == "Attention" for node in graph.node) == depth
    weights = [tensor.name for tensor in graph.initializer]
    last = f"features.trunk.blocks.{depth - 1}."
    assert any(name.startswith(last + "attn.") for name in weights)
    assert any(name.startswith(f"features.trunk.blocks.{depth - 2}.mlp.") for name in weights)
    after = [
        name for name in weights if name.startswith((last + "mlp", last + "norm2", last + "ls", "features.trunk.norm."))
    ]
    assert after == []
    assert not any("head" in name or "pool" in name for name in weights)


def test_the_text_graph_attends_with_one_operator_per_layer(bundle: Path, trunk: Trunk) -> None:
    operators = [node.op_type for node in graph_of(bundle, "text").node]
    assert operators.count("Attention") == len(trunk.model.text.transformer.resblocks)
    assert "Dropout" not in operators


def test_two_exports_give_the_same_bytes_and_no_path_of_this_machine(
    bundle: Path, checkpoint: Checkpoint, trunk_folder: Path, tmp_path: Path
) -> None:
    again = tmp_path / "elsewhere" / "again"
    build(checkpoint, load_trunk(f"local-dir:{trunk_folder}"), again)
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file())
    different = [str(path) for path in files if (again / path).read_bytes() != (bundle / path).read_bytes()]
    assert [name for name in different if name.startswith("stages/")] == []
    assert different == []
    for folder in (again, bundle):
        needles = [
            str(folder.parent),
            str(trunk_folder),
            str(Path.home()),
            str(Path(torch.__file__).parent),
            "site-packages",
        ]
        for path in files:
            content = (folder / path).read_bytes()
            assert [needle for needle in needles if needle.encode() in content] == [], path


def test_the_manifest_names_a_local_trunk_without_its_folder(bundle: Path) -> None:
    assert json.loads((bundle / "manifest.json").read_text())["trunk"]["name"] == "local-dir:trunk"


def test_weights_lie_beside_their_graph(bundle: Path) -> None:
    for stage in STAGES:
        folder = bundle / "stages" / stage
        assert sorted(path.name for path in folder.iterdir()) == ["cpu.onnx", "cpu.weights"]
        assert (folder / "cpu.onnx").stat().st_size < 2_000_000


def test_golden_vectors_cover_padding_and_all_members(bundle: Path, checkpoint: Checkpoint) -> None:
    with safe_open(bundle / "golden.safetensors", framework="np") as file:
        histories, members = file.get_tensor("histories_0"), file.get_tensor("member_scores_0")
    padded = histories[:, :, 0] == -5
    assert padded[:, 0].any()
    assert padded[:, -1].any()
    assert not padded.all(axis=1).any()
    assert members.shape[0] == len(checkpoint.members)


def test_the_trunk_of_the_tests_has_the_sizes_it_is_said_to_have(trunk: Trunk) -> None:
    assert (trunk.width, trunk.patches) == (VISION_WIDTH["test_vit"], PATCHES)
    assert record.encode(trunk.image)
