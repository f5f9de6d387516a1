"""Weights stored in fewer bits: block-scaled fp8 is read, every other packing is refused by name.

Block-scaled fp8 (DeepSeek-V3): beside a weight X of dtype F8_E4M3 stands X_scale_inv with a factor per block of 128x128
(the last blocks of a row or column are cut off by the edge); the value is fp8 * factor, rounded here once to bfloat16.
A checkpoint that holds such weights is written with all of them as bf16, without the factors.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from laser_kernels.checkpoint.shard import Entry
from laser_kernels.errors import CheckpointError

if TYPE_CHECKING:
    import torch

FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
SCALE_SUFFIX = "_scale_inv"
SCALE_DTYPES = ("F64", "F32", "F16", "BF16")
BLOCK = (128, 128)

# Endings of the tensors that a packed weight is stored in, and who packs so.
_PACKED = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    "_blocks": "MXFP4",
    ".weight_packed": "compressed-tensors",
    ".weight.absmax": "bitsandbytes 4-bit",
    ".SCB": "bitsandbytes 8-bit",
}


def scale_name(weight: str) -> str:
    """The name of the tensor that holds the block factors of `weight`."""
    return weight + SCALE_SUFFIX


def packed_weights(names: Collection[str]) -> dict[str, str]:
    """The weights (by the name they would have unpacked) that are stored packed -> who packs so."""
    found = {}
    known = set(names)
    for name in names:
        for ending, method in _PACKED.items():
            if name.endswith(ending):
                base = name.removesuffix(ending)
                if ending == "_blocks" and base + "_scales" not in known:
                    continue  # a name like another, not MXFP4
                found[base if ending == "_blocks" else base + ".weight"] = method
    return found


def refuse_packed(
    name: str,
    entry: Entry | None,
    packed: Mapping[str, str],
    tensors: Mapping[str, Entry],
    config: Mapping[str, Any],
) -> None:
    """Raise CheckpointError if the weight `name`, which a plan asks for, is stored in a form that cannot be read."""
    quantization = config.get("quantization_config")
    method = str(quantization.get("quant_method")) if isinstance(quantization, Mapping) else None
    advice = "reduce the checkpoint it was quantized from, and quantize the result"
    if name in packed:
        raise CheckpointError(f"{name}: is stored as {packed[name]}, which cannot be reduced: {advice}")
    if entry is None:
        return
    if entry.dtype in FP8_DTYPES and len(entry.shape) in (2, 3) and scale_name(name) not in tensors:
        raise CheckpointError(
            f"{name}: is {entry.dtype} without {scale_name(name)!r} ({method or 'no quant_method'}): only "
            f"block-scaled fp8 is understood; {advice}"
        )
    if method is not None and name.endswith(".weight") and entry.dtype in ("U8", "I8", "I32", "F4", "U32"):
        raise CheckpointError(f"{name}: is {entry.dtype}, packed by {method}, which cannot be reduced: {advice}")


def fp8_weights(tensors: Mapping[str, Entry], config: Mapping[str, Any]) -> tuple[str, ...]:
    """The block-scaled fp8 weights of a checkpoint, with their factors' shapes checked; empty for most checkpoints.

    Raises:
        CheckpointError: a factor fits no weight, or some fp8 weights have factors and others have not.
    """
    scaled = [name.removesuffix(SCALE_SUFFIX) for name in tensors if name.endswith(SCALE_SUFFIX)]
    if not scaled:
        return ()
    block = block_of(config)
    for name in scaled:
        weight, scale = tensors.get(name), tensors[scale_name(name)]
        if weight is None or weight.dtype not in FP8_DTYPES or len(weight.shape) not in (2, 3):
            got = "no such tensor" if weight is None else f"{weight.dtype} {list(weight.shape)}"
            raise CheckpointError(f"{scale.name}: needs an fp8 matrix {name!r} to scale; got {got}")
        want = (
            *weight.shape[:-2],
            *(-(-size // side) for size, side in zip(weight.shape[-2:], block, strict=True)),
        )
        if scale.shape != want or scale.dtype not in SCALE_DTYPES:
            raise CheckpointError(
                f"{scale.name}: must be a float tensor of shape {list(want)}, one factor per "
                f"{block[0]}x{block[1]} block of {name!r} {list(weight.shape)}; got {scale.dtype} {list(scale.shape)}"
            )
    bare = [name for name, entry in tensors.items() if entry.dtype in FP8_DTYPES and scale_name(name) not in tensors]
    if bare:
        raise CheckpointError(
            f"{bare[0]}: is fp8 without {scale_name(bare[0])!r}, while other weights have one: "
            "this mixture is not understood"
        )
    return tuple(name for name in tensors if scale_name(name) in tensors)


def block_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of a block: quantization_config.weight_block_size, 128x128 where it is not given."""
    quantization = config.get("quantization_config")
    given = quantization.get("weight_block_size") if isinstance(quantization, Mapping) else None
    if given is None:
        return BLOCK
    if not (isinstance(given, list) and len(given) == 2 and all(type(side) is int and side > 0 for side in given)):
        raise CheckpointError(f"config.json: weight_block_size must be two positive sizes; got {given!r}")
    return given[0], given[1]


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the config that describes plain bf16 weights."""
    plain = copy.deepcopy(dict(config))
    for part in (plain, *(value for value in plain.values() if isinstance(value, dict))):
        part.pop("quantization_config", None)
    return plain


def dequantize(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] = BLOCK) -> torch.Tensor:
    """bfloat16 values of fp8 `weight` (m, n), whose first row begins a block, with factors `scale` (m/block, n/block).

    The product is rounded to float32 and then to bfloat16: the same bits as from float64, where it is exact.
    """
    import torch

    rows, cols = weight.shape
    factors = scale.to(torch.float32)
    spread = factors.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :cols]
    return weight.to(torch.float32).mul_(spread).to(torch.bfloat16)
