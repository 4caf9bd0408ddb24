"""Members stacked in one batched product against members unrolled, as ONNX, and the same in PyTorch as published.

The stacked form is the unrolled module under ``torch.vmap``; it is traced with fixed sizes, since vmap specialises.
Both take turns; medians of milliseconds.

    python benchmarks/stacked_members.py [--write docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.full_scale import CANDIDATES, MEMBERS, PUBLISHED, machine, write_into
from tests.kit import random_member
from trunkline.exporter.reference import ReferenceMember, build_member
from trunkline.exporter.stages.action import ActionStage
from trunkline.exporter.stages.context import ContextStage
from trunkline.exporter.stages.trace import CPU_OPSET
from trunkline.runtime.backends.onnxruntime import SETTINGS
from trunkline.runtime.backends.threads import physical_cores

TURNS = 15


class Stacked(nn.Module):
    """Members' weights with a leading member dimension."""

    def __init__(self, members: Sequence[nn.Module], shares_similarity: bool) -> None:
        super().__init__()
        self.template = [members[0]]  # in a list, so that its own weights are not registered
        self.shares_similarity = shares_similarity
        stacked, _ = stack_module_state(list(members))
        self.names = list(stacked)
        for index, name in enumerate(self.names):
            self.register_parameter(f"stacked_{index}", nn.Parameter(stacked[name].detach(), requires_grad=False))

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.shares_similarity:
            patches, tokens = inputs
            inputs = (tokens @ patches.transpose(1, 2), patches, tokens)
        weights = {name: getattr(self, f"stacked_{index}") for index, name in enumerate(self.names)}
        return torch.vmap(lambda state: functional_call(self.template[0], state, inputs))(weights)


def session(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> onnxruntime.InferenceSession:
    program = torch.onnx.export(module.eval(), inputs, dynamo=True, opset_version=CPU_OPSET, verbose=False)
    program.save(path, external_data=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    for key, value in SETTINGS.items():  # as the runtime sets them; spinning threads would disturb the other session
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure(unrolled: nn.Module, stacked: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> tuple[float, float]:
    """Median milliseconds of both."""
    sessions = [session(unrolled, inputs, folder / "unrolled.onnx"), session(stacked, inputs, folder / "stacked.onnx")]
    times: list[list[float]] = [[], []]
    results: list[object] = [None, None]
    for _ in range(TURNS):
        for which, each in enumerate(sessions):
            names = [value.name for value in each.get_inputs()]
            feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
            started = time.perf_counter()
            results[which] = each.run(None, feed)[0]
            times[which].append((time.perf_counter() - started) * 1e3)
    torch.testing.assert_close(torch.tensor(results[0]), torch.tensor(results[1]), atol=1e-5, rtol=0)
    return statistics.median(times[0]), statistics.median(times[1])


@torch.inference_mode()
def in_pytorch(members: Sequence[ReferenceMember], inputs: tuple[Tensor, ...]) -> float:
    """Median milliseconds of the published modules on the same inputs, each row computed once."""
    times = []
    for _ in range(TURNS):
        started = time.perf_counter()
        for member in members:
            if len(inputs) == 1:
                member.action(inputs[0])
            else:
                member.context(inputs[0].expand(len(inputs[1]), -1, -1), inputs[1])
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    members = [build_member(random_member(PUBLISHED, seed)) for seed in range(MEMBERS)]
    patches = functional.normalize(torch.randn(1, PUBLISHED.patches, PUBLISHED.trunk_width), dim=-1)
    torch.set_num_threads(physical_cores())
    lines = [
        f"Machine: {machine()}.",
        "",
        "| stage, 3 members | unrolled | stacked | PyTorch, once |",
        "|---|---|---|---|",
    ]
    context, action = ContextStage(members), ActionStage(members)
    cases: list[tuple[str, nn.Module, bool, tuple[Tensor, ...]]] = [
        (
            f"context, {rows} instructions",
            context,
            True,
            (patches, functional.normalize(torch.randn(rows, 64, PUBLISHED.trunk_width), dim=-1)),
        )
        for rows in (1, 2, 8)
    ]
    cases.append((f"action, {CANDIDATES} candidates", action, False, (torch.randn(CANDIDATES, 10, 7),)))
    for name, stage, shares, inputs in cases:
        with tempfile.TemporaryDirectory() as folder:
            one, other = measure(stage, Stacked(list(stage.member), shares), inputs, Path(folder))
        lines.append(f"| {name} | {one:.1f} ms | {other:.1f} ms | {in_pytorch(members, inputs):.1f} ms |")
    print("\n".join(lines))
    if arguments.write:
        write_into(arguments.write, "\n".join(lines), "stacked_members")


if __name__ == "__main__":
    main()
