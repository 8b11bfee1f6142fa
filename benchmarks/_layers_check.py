"""Whether a way computes what torch's default does: a time of anything else is worth nothing.

Both round one sum of at most n products, so each is within

    gamma(n) * sum of magnitudes + u * |result|

of the exact one (`dwr_rewrite.equivalence.tolerance`), and the two within twice that of each other.
The zeros off the diagonal are exact and round nothing, so n is that of the depthwise convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks._layers_calls import WHICH, forward
from benchmarks._layers_cudnn import settings
from benchmarks._layers_operands import Operands
from benchmarks._layers_work import DType, Group
from dwr_rewrite.equivalence.tolerance import TF32, UNIT_ROUNDOFF, Rounding
from dwr_rewrite.passes.fx.functional import gradient_of

NAMES = {"bf16": "bfloat16", "fp16": "float16", "tf32": "float32", "fp32": "float32"}


class WrongError(Exception):
    """A way does not compute what torch's default does."""


@dataclass(frozen=True)
class Reference:
    """The default's result for the first operands, and how far off another may be; float32."""

    result: Tensor
    tolerance: Tensor

    def check(self, found: Tensor) -> float:
        """Largest error as a fraction of what is allowed.

        Raises:
            WrongError: it is more than that anywhere, or the shape is another.
        """
        if found.shape != self.result.shape:
            shapes = f"{tuple(found.shape)}, not {tuple(self.result.shape)}"
            raise WrongError(f"the result has the shape {shapes}")
        error = (found.float() - self.result).abs()
        wrong = ~(error <= self.tolerance)  # NaN is wrong too
        count = int(wrong.sum())
        if count:
            first = int(wrong.flatten().to(torch.uint8).argmax())
            pair = (float(each.flatten()[first]) for each in (error, self.tolerance))
            raise WrongError(
                f"{count} of {wrong.numel()} elements differ from torch's default by more than "
                "rounding explains; the first by {:.3g}, where {:.3g} is allowed".format(*pair)
            )
        return float((error / self.tolerance.clamp_min(torch.finfo(torch.float32).tiny)).max())


def reference(group: Group, given: Operands, result: Tensor) -> Reference:
    """From the default's ``result`` for the first operands."""
    magnitude = _magnitude(group, given)
    unit = UNIT_ROUNDOFF[NAMES[group.dtype]]
    bound = relative(group, on_gpu=result.device.type == "cuda") * magnitude
    exact = result.float()
    return Reference(exact, 2 * (bound + unit * exact.abs()))


def relative(group: Group, on_gpu: bool) -> float:
    """Bound on the rounding of the sums, relative to the sum of magnitudes.

    Products are summed in float32, but torch's CPU keeps partial sums of float16 in float16.
    """
    layer, direction = group.layer, group.direction
    coarse = group.dtype == "fp16" and not on_gpu
    rounding = Rounding(
        accumulate=UNIT_ROUNDOFF["float16" if coarse else "float32"],
        multiply=TF32 if group.dtype == "tf32" else 0.0,
        winograd=on_gpu,
    )
    terms = layer.terms(group.batch, direction)
    return rounding.convolution(terms, layer.kernel, layer.stride, layer.dilation)


def _magnitude(group: Group, given: Operands) -> Tensor:
    """Sum of the products' magnitudes; in float32, where it does not overflow as in float16."""
    dtype: DType = "fp32"
    x, weight = given.x[0].float().abs(), given.weight.float().abs()
    geometry = group.layer.geometry
    with settings(dtype, "default"):
        if group.direction == "forward":
            bias = None if given.bias is None else given.bias.float().abs()
            return forward(x, weight, bias, geometry, 1)
        gradient = given.gradient[0].float().abs()
        return gradient_of(gradient, x, weight, geometry, 1, WHICH[group.direction])


def poison(like: Tensor) -> None:
    """Fills the memory that the next result of this size is likely to get with NaN.

    torch's allocator hands out the block that was freed last; were it to hold an earlier, right
    result, elements that a kernel never writes would pass.
    """
    torch.full_like(like, float("nan"))
