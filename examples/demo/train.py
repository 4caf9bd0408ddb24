"""Trains the demo's trunk and its members. One CPU core, about 25 minutes for each command.

    python train.py

1. Writes ``trunk/``: configuration and a tokenizer trained on the world's sentences.
2. Trains trunk and one throw-away head end to end: InfoNCE between (image, instruction) and action window, and a
   grounding loss that tells text tokens where in the image the thing they name is. Without the second a trunk needs
   far more pictures. Only the token features are trained; the pooled embeddings of the open_clip model are not used.
3. Freezes the trunk, trains a fresh head on stored features, and keeps three late epochs of that one run.

    python train.py --sensor

trains three late epochs of smaller heads that feel as well, on the trunk already there, and writes
``sensor_members/``. In some samples the sensor is taken away, and a learned vector stands for what it would have said.
A second loss asks the features for slant and firmness of what is held. Without it a run may overlook one of the two.
``--baseline DIR`` trains the same heads without their sensor side on the same samples, to compare with.

Training episodes come from the "train" split of the world; see :func:`world.episode_rng`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from dataset import Sample, samples
from losses import grounding_loss, held_inside, info_nce, token_roles
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from touch import FORM
from trunk import (
    CONTEXT_LENGTH,
    GRID,
    IMAGE_SIZE,
    PATCHES,
    WIDTH,
    Features,
    create_folder,
    tokenize_all,
    unit_range,
)
from trunk import load as load_trunk
from world import (
    ACTION_DIM,
    PADDING_VALUE,
    WINDOW,
    all_instructions,
    instruction,
    landmarks,
    render,
)

from trunkline.exporter.checkpoint.members import (
    ALL_COMPONENTS,
    Checkpoint,
    HeadShape,
    Member,
    SensorShape,
    Settings,
)
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.reference import ReferenceMember

HERE = Path(__file__).resolve().parent
BACKBONE = "local-dir:examples/demo/trunk"
SEED = 1
FRAMES_PER_EPISODE = 4
EPOCHS, SENSOR_EPOCHS, KEPT_EPOCHS = 14, 28, 3
SHAPE = HeadShape(
    trunk_width=WIDTH,
    patches=PATCHES,
    pool_width=64,
    pool_layers=4,
    embedding=64,
    encoder="transformer",
    encoder_layers=4,
    feedforward=128,
    history_length=WINDOW,
    action_dim=ACTION_DIM,
    heads=8,
)
SENSOR = SensorShape(
    channels=FORM.channels,
    conv=(32, 48, 64, 64),
    layers=1,
    feedforward=128,
    projection=64,
    features=64,
    fusion="concat",
    absent=True,
)
SENSOR_SHAPE = replace(SHAPE, pool_width=48, pool_layers=2, encoder_layers=2, sensor=SENSOR, sensor_heads=4)
DROPPED = 0.15  # share of samples whose sensor is taken away in training
STEP_GAIN = 20.0  # actions are centimetres written in metres; the step encoder starts with weights to match


@dataclass(frozen=True)
class Data:
    """Training samples; their pictures, windows and what was felt side by side; every sentence with its token ids."""

    samples: list[Sample]
    images: Tensor
    windows: Tensor
    felt: Tensor | None
    inside: Tensor
    places: Tensor
    ids: Tensor
    row_of: dict[str, int]

    def sentence_rows(self, picked: Tensor, rng: np.random.Generator) -> Tensor:
        """A fresh wording for each picked sample, as rows of ``ids``."""
        chosen = (self.samples[index] for index in picked.tolist())
        return torch.tensor([self.row_of[instruction(each.scene, each.task, rng)] for each in chosen])


@dataclass(frozen=True)
class Frozen:
    """What a head reads: patch features per sample, token features per sentence."""

    patches: Tensor
    tokens: Tensor


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def collect(count: int, folder: Path, cache: Path | None, *, sensor: bool) -> Data:
    """``count`` training samples with their pictures and every sentence's tokens."""
    chosen = list(samples("train", SEED, count, FRAMES_PER_EPISODE, sensor=sensor))
    if cache is not None and cache.is_file():
        images = torch.from_numpy(np.load(cache))
    else:
        images = pictures(chosen)
        if cache is not None:
            np.save(cache, images.numpy())
    windows = torch.tensor(np.array([sample.window for sample in chosen]), dtype=torch.float32)
    felt = torch.from_numpy(np.stack([sample.felt for sample in chosen])) if sensor else None
    inside = torch.tensor([held_inside(sample) for sample in chosen])
    places = torch.tensor(np.array([landmarks(sample.scene, sample.task) for sample in chosen]), dtype=torch.float32)
    sentences = sorted(set(all_instructions()))
    row_of = {sentence: row for row, sentence in enumerate(sentences)}
    return Data(chosen, images, windows, felt, inside, places, tokenize_all(folder, sentences), row_of)


def pictures(chosen: Sequence[Sample]) -> Tensor:
    """Camera images at the trunk's input size, resized as its preprocessing does it."""
    images = torch.empty(len(chosen), IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
    for number, sample in enumerate(chosen):
        picture = Image.fromarray(render(sample.scene))
        images[number] = torch.from_numpy(np.array(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)))
        if number % 2000 == 0:
            log(f"rendered {number} of {len(chosen)}")
    return images


# ---- training --------------------------------------------------------------------------------------------------


def new_head(shape: HeadShape = SHAPE) -> ReferenceMember:
    head = ReferenceMember(shape, PADDING_VALUE, FORM)
    with torch.no_grad():
        head.single_step_action_encoder.weight.mul_(STEP_GAIN)
    return head.train()


def optimiser(parameters: Iterator[nn.Parameter], rate: float) -> torch.optim.AdamW:
    matrices, rest = [], []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else rest).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def set_rate(adam: torch.optim.AdamW, peak: float, done: int, total: int, floor: float = 0.02) -> None:
    """Linear warm-up over the first twentieth, then a cosine down to ``floor`` of the peak."""
    warm = min(1.0, (done + 1) / (0.05 * total))
    rate = peak * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done / total)))
    for group in adam.param_groups:
        group["lr"] = rate


def fresh_trunk(folder: Path) -> nn.Module:
    """The model of a folder that has no weights yet, started so that few pictures are enough."""
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, precision="fp32")
    with torch.no_grad():
        start_vision(model.visual.trunk)
    return model.train()


def start_vision(trunk: nn.Module) -> None:
    """Starts the vision tower where a long training would take it first.

    Positions are told apart from the beginning, every patch attends to its like (queries equal keys), and the last
    attention, whose output the heads read, hands on what a patch holds. timm's own start (weights of 0.02, layer
    scale of 1e-5) suits long runs of large models.
    """
    trunk.pos_embed[0, -PATCHES:] = 0.5 * plane_sinusoid()
    for block in trunk.blocks:
        for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            nn.init.xavier_uniform_(layer.weight)
        query, _, value = block.attn.qkv.weight.chunk(3)
        for part in (query, value):
            nn.init.orthogonal_(part)
        block.attn.qkv.weight[:] = torch.cat([query, query, value])
        block.ls1.gamma.fill_(0.5)
        block.ls2.gamma.fill_(0.5)
    last = trunk.blocks[-1].attn
    last.proj.weight[:] = last.qkv.weight[-WIDTH:].T


def plane_sinusoid() -> Tensor:
    """(P, D) position code of a square grid: half the width for rows, half for columns."""
    line = sinusoid_line(torch.arange(GRID))
    return torch.cat([line.repeat_interleave(GRID, 0), line.repeat(GRID, 1)], dim=1)


def sinusoid_line(at: Tensor) -> Tensor:
    frequency = 2 * math.pi / GRID * torch.linspace(0.25, 3, WIDTH // 4)
    angle = at.unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def train_trunk(data: Data, folder: Path, steps: int, batch: int, rate: float) -> nn.Module:
    model, head = fresh_trunk(folder), new_head()
    scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    features, roles = Features(model), token_roles(folder)
    learned = [*model.parameters(), *head.parameters(), scale]
    adam = optimiser(iter(learned), rate)
    rng = np.random.default_rng([5, SEED])
    order = endless(len(data.samples), batch, SEED)
    for done in range(steps):
        set_rate(adam, rate, done, steps)
        picked = next(order)
        ids = data.ids[data.sentence_rows(picked, rng)]
        patches = features.patches(unit_range(data.images[picked]))
        tokens = features.tokens(ids)
        score = info_nce(head.context(patches, tokens), head.action(data.windows[picked]), scale)
        ground = grounding_loss(head, patches, tokens, roles[ids], data.places[picked])
        adam.zero_grad()
        (score + ground).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        adam.step()
        if done % 25 == 0 or done == steps - 1:
            log(f"trunk {done}/{steps}: verifier {score:.3f} grounding {ground:.3f}")
        if done % 200 == 199:
            save_trunk(model, folder)  # an interrupted run is not lost
    return model.eval().requires_grad_(False)


def endless(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Batches of shuffled indices, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator)[: count // batch * batch].split(batch)


@torch.inference_mode()
def freeze(model: nn.Module, data: Data) -> Frozen:
    features = Features(model)
    patches = torch.cat([features.patches(unit_range(chunk)) for chunk in data.images.split(128)])
    tokens = torch.cat([features.tokens(chunk) for chunk in data.ids.split(256)])
    return Frozen(patches.clone(), tokens.clone())


def train_members(
    data: Data, frozen: Frozen, shape: HeadShape, *, epochs: int, batch: int, rate: float = 1e-3
) -> dict[int, ReferenceMember]:
    """One run with a fresh head; returns its last epochs by number."""
    head = new_head(shape)
    probe = nn.Identity() if shape.sensor is None else nn.Linear(shape.sensor.features, 2)
    scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    adam = optimiser(iter([*head.parameters(), *probe.parameters(), scale]), rate)
    rng = np.random.default_rng([6, SEED])
    order = endless(len(data.samples), batch, SEED + 1)
    per_epoch = len(data.samples) // batch
    kept: dict[int, ReferenceMember] = {}
    for epoch in range(1, epochs + 1):
        losses = []
        for number in range(per_epoch):
            set_rate(adam, rate, (epoch - 1) * per_epoch + number, epochs * per_epoch, floor=0.1)
            picked = next(order)
            tokens = frozen.tokens[data.sentence_rows(picked, rng)]
            felt, missed = feel(head, probe, data, picked)
            context = head.context(frozen.patches[picked], tokens, felt)
            loss = info_nce(context, head.action(data.windows[picked]), scale) + missed
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            adam.step()
            losses.append(loss.item())
        log(f"members {epoch}/{epochs}: loss {np.mean(losses):.3f} scale {scale.exp().item():.1f}")
        if epoch > epochs - KEPT_EPOCHS:
            kept[epoch] = new_head(shape)
            kept[epoch].load_state_dict(head.state_dict())
    return kept


def feel(head: ReferenceMember, probe: nn.Module, data: Data, picked: Tensor) -> tuple[Tensor | None, Tensor]:
    """(B, S) sensor features, in some rows the learned vector that stands for none; how badly they tell the inside."""
    if head.shape.sensor is None or data.felt is None:
        return None, torch.zeros(())
    features = head.sensor_encoder(data.felt[picked])
    missed = functional.mse_loss(probe(features), data.inside[picked])
    dropped = torch.rand(len(picked), 1) < DROPPED
    return torch.where(dropped, head.sensor_encoder.absent, features), missed


# ---- files -----------------------------------------------------------------------------------------------------


def save_trunk(model: nn.Module, folder: Path) -> None:
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def save_member(head: ReferenceMember, epoch: int, folder: Path) -> None:
    """One epoch as a checkpoint of one member, in Trunkline's own form."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"epoch_{epoch:02d}"
    parts = head.components()
    components = {part: parts[part] for part in ALL_COMPONENTS if part in parts}
    member = Member(name, f"{name}.safetensors", components, settings(head.shape), head.shape)
    write_checkpoint(Checkpoint("trunkline", (member,), BACKBONE), folder / f"{name}.safetensors")


def settings(shape: HeadShape) -> Settings:
    stated = Settings(heads=shape.heads, history_length=WINDOW, action_dim=ACTION_DIM, padding_value=PADDING_VALUE)
    return stated if shape.sensor is None else replace(stated, sensor=FORM, sensor_heads=shape.sensor_heads)


def runs(arguments: argparse.Namespace) -> Iterator[tuple[HeadShape, int, Path]]:
    """Sizes of the heads of each run, its epochs, and the folder of its members."""
    if not arguments.sensor:
        yield SHAPE, arguments.epochs or EPOCHS, arguments.out / "members"
        return
    epochs = arguments.epochs or SENSOR_EPOCHS
    yield SENSOR_SHAPE, epochs, arguments.out / "sensor_members"
    if arguments.baseline is not None:
        yield replace(SENSOR_SHAPE, sensor=None), epochs, arguments.baseline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder that holds trunk/ and receives members")
    parser.add_argument("--samples", type=int, default=12000)
    parser.add_argument("--trunk-steps", type=int, default=800)
    parser.add_argument("--epochs", type=int, help="of the members' run")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--cache", type=Path, help="a .npy file that keeps the rendered images between runs")
    parser.add_argument("--reuse-trunk", action="store_true", help="train members only, on the trunk already there")
    parser.add_argument("--sensor", action="store_true", help="train members that feel, on the trunk already there")
    parser.add_argument("--baseline", type=Path, help="with --sensor: folder for members of the same run without it")
    arguments = parser.parse_args()
    arguments.reuse_trunk |= arguments.sensor
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    start = time.monotonic()
    folder = arguments.out / "trunk"
    if not arguments.reuse_trunk:
        create_folder(folder, sorted(set(all_instructions())))
    data = collect(arguments.samples, folder, arguments.cache, sensor=arguments.sensor)
    log(f"{len(data.samples)} samples after {time.monotonic() - start:.0f} s; {CONTEXT_LENGTH} tokens a sentence")
    if not arguments.reuse_trunk:
        save_trunk(train_trunk(data, folder, arguments.trunk_steps, arguments.batch, 1e-3), folder)
        log(f"trunk after {time.monotonic() - start:.0f} s")
    frozen = freeze(load_trunk(folder)[0], data)
    for shape, epochs, members in runs(arguments):
        kept = train_members(data, frozen, shape, epochs=epochs, batch=2 * arguments.batch)
        for epoch, head in kept.items():
            save_member(head, epoch, members)
        log(f"{members} after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
