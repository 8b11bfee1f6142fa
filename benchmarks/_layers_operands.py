"""The tensors that a group is run on, in enough copies that the cache does not serve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from benchmarks._layers_work import Group
from dwr_rewrite.workload import Layout

TORCH_DTYPES = {
    "fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
}  # fmt: skip
ALIGNMENT = 256
"""Bytes: that of torch's own allocations, on which cuDNN's choice of a kernel may depend."""


@dataclass(frozen=True)
class Operands:
    """Tensors of a group in one layout; a list holds one tensor for each call of a rotation."""

    x: list[Tensor]
    gradient: list[Tensor]
    weight: Tensor
    bias: Tensor | None


def operands(group: Group, layout: Layout, count: int, device: torch.device) -> Operands:
    """Normally distributed, the same in both layouts; never zeros, which run faster than data."""
    layer, dtype = group.layer, TORCH_DTYPES[group.dtype]
    inputs, outputs = layer.input_shape(group.batch), layer.output_shape(group.batch)
    reads_x = group.direction != "grad_input"
    reads_gradient = group.direction != "forward"
    return Operands(
        _rotation(inputs, count if reads_x else 1, layout, dtype, device, 1),
        _rotation(outputs, count, layout, dtype, device, 2) if reads_gradient else [],
        _rotation(layer.spec.weight_shape, 1, layout, dtype, device, 3)[0],
        _rotation((outputs[1],), 1, "nchw", dtype, device, 4)[0] if layer.bias else None,
    )


def _rotation(
    shape: Sequence[int], count: int, layout: Layout, dtype: torch.dtype, device: torch.device,
    seed: int,
) -> list[Tensor]:  # fmt: skip
    generator = torch.Generator(device).manual_seed(seed)
    step = -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT // dtype.itemsize
    room = torch.empty(count, step, dtype=dtype, device=device)
    last = layout == "channels_last" and len(shape) > 3
    stored = (shape[0], *shape[2:], shape[1]) if last else tuple(shape)
    found: list[Tensor] = []
    for row in room:
        values = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        view = row[: values.numel()].view(stored)
        found.append((view.movedim(-1, 1) if last else view).copy_(values))
    return found
