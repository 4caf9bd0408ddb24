"""What depends on constants alone is computed before a stage is written, by PyTorch, whatever back ends make of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from trunkline.exporter.stages.folding import constant_nodes
from trunkline.exporter.stages.towers import VisionStage
from trunkline.exporter.stages.trace import Contract, capture, lower, save, trace
from trunkline.exporter.stages.trt import TRT_OPSET
from trunkline.exporter.trunk import Trunk
from trunkline.runtime.backends import StageFiles, named
from trunkline.runtime.errors import ExportError
from trunkline.runtime.manifest import Stage, TensorSpec

WIDTH = 128  # with 101 rows more numbers than torch's own exporter folds


def resampling(trunk: Trunk, height: int, width: int) -> Trunk:
    """A trunk whose vision tower was trained on 160 x 160 and resamples its position embedding in every call."""
    torch.manual_seed(0)
    model = copy.deepcopy(trunk.model)
    tower = timm.create_model("test_vit", embed_dim=WIDTH, depth=2, num_heads=2, dynamic_img_size=True)
    nn.init.normal_(tower.pos_embed)
    model.visual.trunk, model.visual.image_size = tower.eval().requires_grad_(False), (height, width)
    return replace(trunk, model=model)


def opened(folder: Path, stage: Stage, backend: str, variant: str = "cpu") -> Callable[..., np.ndarray]:
    graph = folder.parent / stage.variants[variant].graph
    session = named(backend).open_stage(StageFiles("any", stage, graph.read_bytes(), graph.parent, 1))
    return lambda **inputs: session.run(inputs)[stage.outputs[0].name]


@pytest.mark.parametrize("size", [(96, 160), (128, 128), (192, 192), (320, 320)], ids=str)
def test_a_resampled_position_embedding(trunk: Trunk, tmp_path: Path, size: tuple[int, int]) -> None:
    """OpenVINO resamples it otherwise: 0.03 off at 96 x 160."""
    module = VisionStage(resampling(trunk, *size))
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels)).numpy()
    ports = (TensorSpec("pixels", "uint8", ("B", height, width, 3)),)
    contract = Contract("vision", ports, TensorSpec("patches", "float32", ("B", *expected.shape[1:])))
    stage = trace(module, contract, tmp_path / "stages")
    for backend in ("onnxruntime", "openvino"):
        found = opened(tmp_path / "stages", stage, backend)(pixels=pixels)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=backend)


@pytest.mark.parametrize("opset", [23, TRT_OPSET])
def test_it_is_pytorchs_to_the_bit(trunk: Trunk, opset: int) -> None:
    module = VisionStage(resampling(trunk, 96, 160))
    tower = module.features.trunk
    zeros = torch.zeros(1, 6, 10, WIDTH)
    class_token = tower.cls_token[0, 0]
    expected = tower._pos_embed(zeros)[0]  # (61, WIDTH): what is added to the class token and to zeros
    contract = Contract(
        "vision",
        (TensorSpec("pixels", "uint8", ("B", 96, 160, 3)),),
        TensorSpec("patches", "float32", ("B", 60, WIDTH)),
    )
    model = lower(capture(module, contract), contract, opset)
    assert constant_nodes(model) == []
    added = [
        value.const_value.numpy().reshape(61, WIDTH)
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.size == 61 * WIDTH
    ]
    assert len(added) == 1
    np.testing.assert_array_equal(added[0][1:], expected[1:].numpy())
    np.testing.assert_allclose(added[0][0] + class_token.numpy(), expected[0].numpy(), rtol=1e-6)
    assert not any(node.op_type == "Resize" for node in model.graph)


class Module(nn.Module):
    """``y = f(x, w)`` for x (N, 4) and a constant w (4, 4)."""

    def __init__(self, action: Callable[[Tensor, Tensor], Tensor], size: int = 4) -> None:
        super().__init__()
        self.action = action
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.rand(size, size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.action(x, self.w)


def overwritten(x: Tensor, w: Tensor) -> Tensor:
    w = w.clone()
    w[1:3] = w[0] * 2
    w.add_(1)
    return x @ w


def overwritten_by_an_input(x: Tensor, w: Tensor) -> Tensor:
    rows = (w * 2).clone()
    rows[0] = x.sum(0)
    return x @ rows + (w + 1).sum()


def in_pieces(x: Tensor, w: Tensor) -> Tensor:
    left, right = (w * 3).chunk(2, dim=1)
    return x @ torch.cat([right, left], dim=1) + x @ w


def made_up(x: Tensor, w: Tensor) -> Tensor:
    return x * torch.arange(4).float().softmax(0) + torch.ones(4).cumsum(0)


def attended(x: Tensor, w: Tensor) -> Tensor:
    """The mask is computed by what torch's exporter writes for attention."""
    rows = x[:, None, :, None].expand(-1, 2, -1, 8)
    return functional.scaled_dot_product_attention(rows, rows, rows, is_causal=True).sum((1, 3))


MODULES = {
    "normalised": (lambda x, w: x @ functional.layer_norm(w, (4,)), 4),
    "resampled": (
        lambda x, w: x + functional.interpolate(w[None, None], (1, 4), mode="bicubic", antialias=True)[0, 0],
        4,
    ),
    "overwritten": (overwritten, 4),
    "overwritten by an input": (overwritten_by_an_input, 4),
    "in pieces": (in_pieces, 4),
    "made up": (made_up, 4),
    "chosen": (lambda x, w: x + torch.where(w > 0.5, w, -w).argmax(0), 4),
    "expanded": (lambda x, w: (x[:, None] + w.exp()[:1].expand(3, 4)).sum(1), 4),
    "too large for torch's exporter": (lambda x, w: x @ w.T.log_softmax(0), 120),
    "attended": (attended, 130),
}


@pytest.mark.parametrize("opset", [23, TRT_OPSET])
@pytest.mark.parametrize("name", MODULES)
def test_operations_on_constants(tmp_path: Path, name: str, opset: int) -> None:
    action, size = MODULES[name]
    module = Module(action, size)
    contract = Contract("odd", (TensorSpec("x", "float32", ("N", size)),), TensorSpec("y", "float32", ("N", size)))
    model = lower(capture(module, contract), contract, opset)
    assert constant_nodes(model) == []
    variant = save(model, contract, tmp_path / "stages", "cpu", "float32")
    x = torch.rand(3, size)
    for backend in ("onnxruntime", "openvino"):
        run = opened(tmp_path / "stages", Stage(contract.inputs, (contract.output,), {"cpu": variant}), backend)
        np.testing.assert_allclose(run(x=x.numpy()), module(x).numpy(), rtol=1e-5, atol=1e-5, err_msg=backend)


def test_the_module_stays_as_it_was() -> None:
    module = Module(overwritten)
    before = module.w.clone()
    spec = TensorSpec("x", "float32", ("N", 4))
    capture(module, Contract("odd", (spec,), replace(spec, name="y")))
    assert torch.equal(module.w, before)


def test_a_weight_that_is_only_viewed_keeps_its_name() -> None:
    contract = Contract("odd", (TensorSpec("x", "float32", ("N", 4)),), TensorSpec("y", "float32", ("N", 4)))
    module = nn.Sequential(Module(lambda x, w: x @ w[:4].to(torch.float32)))
    assert list(lower(capture(module, contract), contract, 23).graph.initializers) == ["0.w"]


def test_what_cannot_be_folded_is_refused(tmp_path: Path) -> None:
    """Random numbers are other ones in every run, and in every back end."""
    contract = Contract("odd", (TensorSpec("x", "float32", ("N", 4)),), TensorSpec("y", "float32", ("N", 4)))
    with pytest.raises(ExportError, match=r"(?s)depend on constants alone.*stage odd.*- RandomUniformLike\n.*- Mul\n"):
        trace(Module(lambda x, w: x + torch.rand(4) * w[0]), contract, tmp_path)
    assert list(tmp_path.iterdir()) == []


def restores(node: onnx_ir.Node) -> bool:
    """Whether a node makes a number of what is kept in fewer bytes: by design the only operations on constants."""
    makers = [value.producer() for value in node.inputs if value is not None]
    if node.op_type in ("Cast", "DequantizeLinear"):
        return not any(makers)
    return node.op_type in ("Mul", "Div") and [maker.op_type for maker in makers if maker] == ["Cast"]


def test_bundles_hold_no_operations_on_constants(
    bundle: Path, half_bundle: Path, half_int8_bundle: Path, sensor_bundle: Path
) -> None:
    """Neither in float32 nor, but for what restores weights, in int8 and half."""
    for path in bundle.rglob("*.onnx"):
        assert constant_nodes(onnx_ir.load(path)) == []
    for folder in (half_bundle, half_int8_bundle, sensor_bundle):
        for path in folder.rglob("*.onnx"):
            left = [f"{node.op_type} {node.name}" for node in constant_nodes(onnx_ir.load(path)) if not restores(node)]
            assert left == [], path
