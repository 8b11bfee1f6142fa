"""torch's switches, what it picks under them, and cuDNN where it would pick something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks._layers_operands import Operands
from benchmarks._layers_shapes import Layer
from benchmarks._layers_work import DType, Group
from dwr_rewrite.passes.fx.functional import pack
from dwr_rewrite.passes.fx.geometry import Geometry
from dwr_rewrite.passes.fx.tune.flags import allows_tf32, flag, precision

aten = torch.ops.aten


class UnsupportedError(Exception):
    """This way does not exist here; the message says why."""


class SameError(Exception):
    """This way is what another one does already; the message names it."""


@contextmanager
def settings(dtype: DType, setting: str) -> Iterator[None]:
    """torch's switches as a way has them; as they were, afterwards."""
    cudnn: Any = torch.backends.cudnn
    with ExitStack() as stack:
        stack.enter_context(precision(dtype != "fp32"))
        stack.enter_context(flag(cudnn, "benchmark", setting in ("benchmark", "cudnn")))
        if hasattr(cudnn, "depthwise_kernel"):
            kernel = "cudnn" if setting == "cudnn" else "auto"
            stack.enter_context(flag(cudnn, "depthwise_kernel", kernel))
        yield


def backend(group: Group, width: int, given: Operands) -> str:
    """The backend that torch picks for this convolution, by its own name."""
    geometry = group.layer.geometry
    weight = pack(given.weight, geometry.packing(width))
    select = torch._C._select_conv_backend  # noqa: SLF001  no public function tells it
    return select(given.x[0], weight, given.bias, *geometry.arguments(width)).name


def forced_by(group: Group, given: Operands) -> str:
    """How cuDNN is forced: by ``depthwise_kernel``, or by calling its operator.

    Raises:
        SameError: torch picks cuDNN by itself.
        UnsupportedError: there is no way to force it.
    """
    if given.weight.device.type != "cuda":
        raise UnsupportedError("cuDNN needs a CUDA device")
    with settings(group.dtype, "default"):
        if backend(group, 1, given).startswith("Cudnn"):
            raise SameError("torch picks cuDNN by itself")
    if hasattr(torch.backends.cudnn, "depthwise_kernel"):
        with settings(group.dtype, "cudnn"):
            if backend(group, 1, given).startswith("Cudnn"):
                return "depthwise_kernel"
    if group.direction == "grad_weight":
        raise UnsupportedError(
            f"torch {torch.__version__} takes its own kernel here whatever depthwise_kernel says, "
            "and has no operator for cuDNN's gradient of the weight"
        )
    return "operator"


def operator(group: Group, given: Operands) -> Callable[[int], Tensor]:
    """cuDNN's own operator for the forward or the gradient of the input."""
    layer = group.layer
    if group.direction == "forward":
        return lambda i: _forward(given.x[i % len(given.x)], given, layer)
    gradients = given.gradient
    return lambda i: _grad_input(gradients[i % len(gradients)], given.weight, layer)


def _forward(x: Tensor, given: Operands, layer: Layer) -> Tensor:
    found = aten.cudnn_convolution(
        _flat(x), _flat(given.weight), *_lifted(layer.geometry), layer.channels, *_flags()
    ).reshape(layer.output_shape(x.shape[0]))
    return found if given.bias is None else found + given.bias.view(-1, *(1,) * (x.dim() - 2))


def _grad_input(gradient: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """The transposed convolution, which is how torch reaches cuDNN's gradient of the input."""
    geometry = layer.geometry
    padding, stride, dilation = _lifted(geometry)
    kernel, lengths = _flat(weight).shape[2:], _flat(gradient).shape[2:]
    rank = len(geometry.kernel)
    wanted = (1,) * (len(kernel) - rank) + layer.spatial
    extra = [
        n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
        for n, m, s, p, d, k in zip(wanted, lengths, stride, padding, dilation, kernel, strict=True)
    ]
    return aten.cudnn_convolution_transpose(
        _flat(gradient), _flat(weight), padding, extra, stride, dilation, geometry.channels,
        *_flags(),
    ).reshape(gradient.shape[0], geometry.channels, *layer.spatial)  # fmt: skip


def _flat(tensor: Tensor) -> Tensor:
    """With a height of 1 where there is one spatial axis: cuDNN takes four axes or more."""
    return tensor.unsqueeze(2) if tensor.dim() == 3 else tensor


def _lifted(geometry: Geometry) -> tuple[tuple[int, ...], ...]:
    padding, stride, dilation = geometry.padding, geometry.stride, geometry.dilation
    if len(padding) > 1:
        return padding, stride, dilation
    return (0, *padding), (1, *stride), (1, *dilation)


def _flags() -> tuple[bool, bool, bool]:
    """benchmark, deterministic, allow_tf32"""
    return torch.backends.cudnn.benchmark, False, allows_tf32()
