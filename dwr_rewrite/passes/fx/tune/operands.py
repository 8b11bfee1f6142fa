"""The tensors that a convolution is measured on, in enough sets that no cache serves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

from dwr_rewrite.workload import Workload

COLD = 2
"""Times that all sets together exceed the last level of cache: none is left in it on its turn."""

MOST = 512
"""Sets at most. Smaller ones fit into the cache all the same, and launching is what they cost."""

ALIGNMENT = 256
"""Bytes: that of torch's own allocations, on which cuDNN's choice of a kernel may depend."""


@dataclass(frozen=True)
class Operands:
    """Tensors of a convolution in its layout; of what is read each time, one for each turn.

    Attributes:
        x: inputs.
        gradient: gradients of the output; empty for a forward.
        weight: the compact weight.
        bias: or None.
    """

    x: Sequence[Tensor]
    gradient: Sequence[Tensor]
    weight: Tensor
    bias: Tensor | None


def sets_of(workload: Workload, cache: int) -> int:
    """How many sets of operands take turns, for a cache of so many bytes."""
    return min(MOST, max(2, ceil(COLD * cache / (workload.elements * workload.itemsize))))


def operands(workload: Workload, sets: int, device: torch.device) -> Operands:
    """Normally distributed; never zeros, which a GPU runs faster than data.

    Args:
        workload: the convolution.
        sets: how many take turns.
        device: where they are.
    """
    reads_x, reads_gradient = workload.direction != "grad_input", workload.direction != "forward"
    spec = workload.spec

    def made(shape: Sequence[int], count: int, seed: int) -> list[Tensor]:
        return _made(shape, count, workload, device, seed)

    return Operands(
        made(workload.input_shape, sets if reads_x else 1, 1),
        made(workload.output_shape, sets, 2) if reads_gradient else [],
        made(spec.weight_shape, 1, 3)[0],
        made((spec.out_channels,), 1, 4)[0] if spec.bias else None,
    )


def _made(
    shape: Sequence[int], count: int, workload: Workload, device: torch.device, seed: int
) -> list[Tensor]:
    """Tensors one after the other in one piece of memory."""
    dtype = getattr(torch, workload.spec.dtype)
    generator = torch.Generator(device).manual_seed(seed)
    step = -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT // dtype.itemsize
    room = torch.empty(count, step, dtype=dtype, device=device)
    last = workload.layout == "channels_last" and len(shape) > 3
    stored = (shape[0], *shape[2:], shape[1]) if last else tuple(shape)
    found: list[Tensor] = []
    for row in room:
        view = row[: prod(shape)].view(stored).normal_(generator=generator)
        found.append(view.movedim(-1, 1) if last else view)
    return found
