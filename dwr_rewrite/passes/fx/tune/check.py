"""Whether a form computes the depthwise convolution: else its time is worth nothing.

It is held against the depthwise convolution in float32 (float64 for that type) and in NCHW, which
other kernels compute than those of 16-bit types and of channels_last: of these some are wrong, in
torch 2.13 on a CPU the bfloat16 gradient of a dilated weight in channels_last.

Both round one sum of at most n products, so each is within

    gamma(n) * sum of magnitudes + u * |result|

of the exact one (:mod:`dwr_rewrite.equivalence.tolerance`), and the two within twice that of each
other. The zeros off the diagonal are exact and round nothing, so that n is the depthwise one's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from dwr_rewrite.equivalence.tolerance import SMALLEST_NORMAL, TF32, UNIT_ROUNDOFF, Rounding
from dwr_rewrite.passes.fx.tune.forms import call_of
from dwr_rewrite.passes.fx.tune.operands import Operands
from dwr_rewrite.workload import Workload


class WrongError(RuntimeError):
    """A form computes something else."""


@dataclass(frozen=True)
class Gate:
    """The depthwise result for the first operands, and how far off a form's may be.

    Attributes:
        result: in float32, or in float64 where that is the type.
        tolerance: of every element.
    """

    result: Tensor
    tolerance: Tensor

    @classmethod
    def of(cls, workload: Workload, given: Operands) -> Gate:
        """For the first operands."""
        name = workload.spec.dtype
        wide = torch.float64 if name == "float64" else torch.float32
        exact = _depthwise(workload, given, wide, lambda tensor: tensor)
        magnitude = _depthwise(workload, given, wide, torch.abs)
        bound = relative(workload, exact.device.type == "cuda") * magnitude
        stored = UNIT_ROUNDOFF[name] * exact.abs() + SMALLEST_NORMAL[name]
        return cls(exact, 2 * (bound + stored))

    def check(self, found: Tensor) -> None:
        """Refuses another result.

        Raises:
            WrongError: its shape is another, or an element is further off than rounding explains.
        """
        if found.shape != self.result.shape:
            raise WrongError(f"its result has the shape {tuple(found.shape)}, not "
                             f"{tuple(self.result.shape)}")  # fmt: skip
        error = (found.to(self.result.dtype) - self.result).abs()
        wrong = int((~(error <= self.tolerance)).sum())  # NaN is wrong too
        if wrong:
            raise WrongError(f"{wrong} of {error.numel()} elements are further from the depthwise "
                             f"result than rounding explains")  # fmt: skip


def relative(workload: Workload, on_gpu: bool) -> float:
    """Bound on the rounding of the sums, relative to the sum of magnitudes.

    Products are summed in float32 or wider, but torch's CPU keeps partial sums of float16 in
    float16.
    """
    spec = workload.spec
    sums = "float32" if spec.dtype != "float64" else "float64"
    if spec.dtype == "float16" and not on_gpu:
        sums = "float16"
    rounding = Rounding(
        accumulate=UNIT_ROUNDOFF[sums],
        multiply=TF32 if workload.tf32 else 0.0,
        winograd=on_gpu,
    )
    return rounding.convolution(terms(workload), spec.kernel, spec.stride, spec.dilation)


def terms(workload: Workload) -> int:
    """Products that are summed for one element of the result, at most."""
    spec = workload.spec
    if workload.direction == "grad_weight":
        lengths = workload.input_shape if spec.transposed else workload.output_shape
        return workload.batch * prod(lengths[2:])
    if workload.direction == "grad_input":  # from all outputs of its channel
        return spec.taps * spec.multiplier
    return spec.taps + spec.bias


def _depthwise(
    workload: Workload, given: Operands, dtype: torch.dtype, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """The depthwise convolution of the first operands, changed, in a wide type and in NCHW."""
    name = str(dtype).removeprefix("torch.")
    wide = replace(
        workload, spec=replace(workload.spec, dtype=name), layout="nchw",
        tf32=workload.tf32 and name == "float32",
    )  # fmt: skip

    def changed(tensor: Tensor) -> Tensor:
        return change(tensor).to(dtype, memory_format=torch.contiguous_format)

    bias = None if given.bias is None else changed(given.bias)
    gradient = [changed(each) for each in given.gradient[:1]]
    first = Operands([changed(given.x[0])], gradient, changed(given.weight), bias)
    found = call_of(wide, 1, first)(0)
    assert isinstance(found, Tensor)
    return found


def poison(like: Tensor, dtype: torch.dtype) -> None:
    """Fills the memory that the next result of this size is likely to get with NaN.

    torch's allocator hands out the block that was freed last; were it to hold an earlier, right
    result, elements that a kernel never writes would pass.

    Args:
        like: has the shape of the result.
        dtype: of the result.
    """
    torch.full(like.shape, float("nan"), dtype=dtype, device=like.device)
