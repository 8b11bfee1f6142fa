"""From tensors to launches: views, the output, the tile, and which kernel runs.

No activation is copied, whatever its strides. A weight that is not contiguous is, and so are scale
and bias: they are small, and every program reads them. An output has the format of the input.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from dwr_rewrite.errors import DwrError
from dwr_rewrite.kernels import tiles
from dwr_rewrite.kernels.layout import channels_last, empty, volume
from dwr_rewrite.kernels.problem import Activation, Problem, Triple, triple
from dwr_rewrite.kernels.reference import channel_sums
from dwr_rewrite.kernels.tile import Tile

_atomics = False


def allow_atomics(allowed: bool) -> bool:
    """Lets gradients of weights be summed by atomic additions, in any order: not deterministic.

    It holds for the whole process, for torch runs backward passes in threads of its own. Where
    ``torch.use_deterministic_algorithms`` is on it changes nothing.

    Returns:
        what was allowed before; False at first.
    """
    global _atomics
    before, _atomics = _atomics, allowed
    return before


def available(device: torch.device) -> bool:
    """Whether the kernels run there: an NVIDIA GPU of capability 8.0 or newer, with Triton.

    With ``TRITON_INTERPRET=1``, set before Triton is imported, they run on a CPU too, slowly.
    """
    if device.type == "cuda":
        return _triton() and _capable(device)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == "cpu" and interpreted and _triton()


@cache
def _triton() -> bool:
    return find_spec("triton") is not None


@cache
def _capable(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132  # the interpreter has none; as on an H100 or H200, so that tiles are alike
    return torch.cuda.get_device_properties(device).multi_processor_count


def depthwise(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    size: Sequence[int],
    problem: Problem,
    activation: str,
    tile: str,
) -> Tensor:
    """Runs ``dwr::depthwise``, whose arguments describe ``problem``, by a kernel."""
    out = empty(x, problem.out_channels, size)
    if out.numel() == 0:
        return out
    chosen = _tile(
        tile, tiles.default, problem, x.shape[0], triple(x.shape[2:]), triple(size), x.itemsize,
        channels_last(x), _multiprocessors(x.device),
    )  # fmt: skip
    if chosen.method == "mma":
        from dwr_rewrite.kernels.banded import run
    else:
        from dwr_rewrite.kernels.gather import run
    with _on(x.device):
        run(
            volume(x), _flat(weight, problem), _contiguous(scale), _contiguous(bias), volume(out),
            problem, cast(Activation, activation), chosen, _as_is,
        )  # fmt: skip
    return out


def depthwise_weight(
    x: Tensor,
    gradient: Tensor,
    weight_shape: Sequence[int],
    problem: Problem,
    bias: bool,
    tile: str,
) -> tuple[Tensor, Tensor]:
    """Runs ``dwr::depthwise_weight`` by a kernel; the sums of a transposed map are aten's."""
    fused = bias and not problem.adjoint
    out = x.new_empty(list(weight_shape))
    sums = x.new_empty(problem.out_channels) if fused else channel_sums(gradient, bias)
    if x.shape[0] == 0:
        return out.zero_(), sums.zero_()
    chosen = _tile(
        tile, tiles.default_weight, problem, x.shape[0], triple(x.shape[2:]),
        triple(gradient.shape[2:]), x.itemsize, channels_last(x), _multiprocessors(x.device),
    )  # fmt: skip
    if chosen.method == "mma":
        from dwr_rewrite.kernels.banded import run_weight as run
    else:
        from dwr_rewrite.kernels.weight import run
    with _on(x.device):
        run(
            volume(x), volume(gradient), _flat(out, problem), sums if fused else None, problem,
            chosen, _as_is, atomic=_atomics and not torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip
    return out, sums


@lru_cache(maxsize=4096)
def _tile(
    text: str, heuristic: Callable[..., Tile], problem: Problem, batch: int, in_spatial: Triple,
    out_spatial: Triple, itemsize: int, innermost: bool, multiprocessors: int,
) -> Tile:  # fmt: skip
    """The tile of this text, or the heuristic's; remembered, for it costs more than a launch."""
    chosen = _read(text) if text else None
    if chosen is not None and (chosen.method == "fma" or itemsize == 2):
        _check(problem, chosen, tiles.check if heuristic is tiles.default else tiles.check_weight)
        return chosen  # one that was tuned for 16 bits must not forbid 32: it is only a speed
    return heuristic(problem, batch, in_spatial, out_spatial, itemsize, innermost, multiprocessors)


def _read(text: str) -> Tile:
    try:
        return Tile.parse(text)
    except ValueError as error:
        raise DwrError(str(error)) from error


def _check(problem: Problem, tile: Tile, check: Callable[[Problem, Tile], None]) -> None:
    try:
        check(problem, tile)
    except ValueError as error:
        raise DwrError(str(error)) from error


def _flat(weight: Tensor, problem: Problem) -> Tensor:
    """[C*m, taps], contiguous."""
    return weight.reshape(problem.groups * problem.multiplier, problem.taps).contiguous()


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _as_is(kernel: Any) -> Any:
    """The operators are opaque to a tracer, so a launch needs no wrapper; see ``ops``."""
    return kernel


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
