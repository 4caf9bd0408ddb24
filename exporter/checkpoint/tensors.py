"""What the tensors of a checkpoint must be before anything is computed, hashed or written with them.

A tensor of whole numbers, of a quantised type or without values has the right name and shape, and every library casts
it to numbers that nobody trained. Names that a wrapper prefixed are refused, not mended: under a wrapper there may be
shards and flattened tensors, and only whoever saved the file can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from trunkline.exporter.checkpoint.members import StateDict
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.manifest import MAX_DIMENSION
from trunkline.runtime.record import shortened

#: Names of counters that batch norms carry and nothing computes with.
COUNTER = "num_batches_tracked"

_WEIGHTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_BUFFERS = (torch.int64, torch.int32, torch.bool)

#: Names of a wrapped model that a message lists; they are all alike.
_SHOWN = 3
_GATHERED = "save a full state dict: torch.distributed.checkpoint.state_dict.get_model_state_dict"
#: What wrappers put into names, and how to save without it.
_WRAPPERS = {
    "module": "DataParallel and the like put `module.` into names: save model.module.state_dict()",
    "_orig_mod": "torch.compile puts `_orig_mod.` into names: save the state_dict() of the model that was compiled, "
    "which is model._orig_mod",
    "_fsdp_wrapped_module": f"FSDP puts `_fsdp_wrapped_module.` into names: {_GATHERED}",
    "_checkpoint_wrapped_module": "activation checkpointing puts `_checkpoint_wrapped_module.` into names: "
    + _GATHERED,
}


def refuse_wrapped(names: Iterable[str], where: object) -> None:
    """Raises CheckpointError if names of tensors hold what a wrapper puts there, saying which and how to save."""
    wrapped = {name: found for name in names if (found := list(_wrappers(name)))}
    if wrapped:
        raise CheckpointError(
            "a checkpoint was saved from a wrapped model",
            where=where,
            expected="names of the model's own tensors",
            found=f"{', '.join(list(wrapped)[:_SHOWN])}: {len(wrapped)} such names",
            fix="; ".join(dict.fromkeys(_WRAPPERS[each] for found in wrapped.values() for each in found)),
        )


def _wrappers(name: str) -> Iterator[str]:
    """``module`` is a word like others, so it counts at the front only, and behind the name of one part."""
    own = 0
    for part in name.split(".")[:-1]:
        if part in _WRAPPERS and (part != "module" or own < 2):
            yield part
        else:
            own += 1


def refuse_unusable(tensors: StateDict, where: object, *, buffers: bool = False) -> None:
    """Raises CheckpointError, naming the tensors, unless all are dense and hold floating-point numbers.

    Args:
        tensors: by name, on the CPU.
        where: file and part, for messages.
        buffers: whether there may also be int64, int32 and bool, as in a trunk's buffers.
    """
    problems = {name: problem for name, tensor in tensors.items() if (problem := _problem(name, tensor, buffers))}
    if problems:
        raise CheckpointError(
            "tensors of a checkpoint cannot be used as weights",
            where=where,
            expected="dense float32, float16, bfloat16 or float64",
            found=shortened([f"{name} is {what}" for name, (what, _) in problems.items()]),
            fix="; ".join(dict.fromkeys(fix for _, fix in problems.values())),
        )


def _problem(name: str, tensor: torch.Tensor, buffers: bool) -> tuple[str, str] | None:
    """What is wrong with a tensor, and how to mend it."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:
        return "nested", "save one tensor of one shape"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}", "save plain tensors, such as full_tensor() of a DTensor"
    if tensor.is_meta:
        return "a meta tensor, without values", "load the model's weights before saving them"
    if tensor.is_quantized:
        return f"quantised ({dtype})", "save tensor.dequantize(), or the weights before they were quantised"
    if tensor.layout != torch.strided:
        return f"sparse ({str(tensor.layout).removeprefix('torch.')})", "save tensor.to_dense()"
    if not buffers and (tensor.numel() == 0 or max(tensor.shape, default=0) > MAX_DIMENSION):
        return f"of shape {tuple(tensor.shape)}", f"save trained weights; sides are from 1 to {MAX_DIMENSION}"
    if tensor.dtype in (*_WEIGHTS, *(_BUFFERS if buffers or name.endswith(COUNTER) else ())):
        return None
    if tensor.is_complex():
        return dtype, "save real weights"
    return dtype, "save the weights in float32, as they were before they were rounded or quantised"
