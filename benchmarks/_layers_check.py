"""Whether a way computes the convolution: a time of anything else is worth nothing.

A way rounds one sum of at most n products, so it is within

    gamma(n) * sum of magnitudes + u * |result|

of the exact one (`dwr_rewrite.equivalence.tolerance`), which an evaluation in float64 stands for.
Twice that is allowed: the yardstick and the magnitudes are kept in float32, and are rounded too.
The zeros off the diagonal are exact and round nothing, so n is that of the depthwise convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks._layers_calls import WHICH, forward
from benchmarks._layers_cudnn import settings
from benchmarks._layers_operands import Operands
from benchmarks._layers_work import NAMES, Group
from dwr_rewrite.equivalence.tolerance import TF32, UNIT_ROUNDOFF, Rounding
from dwr_rewrite.passes.fx.functional import gradient_of

PART = 2**26
"""Elements of the batch that the yardstick takes at a time: in float64 not all of it may fit."""


class WrongError(Exception):
    """A way computes something else."""


@dataclass(frozen=True)
class Reference:
    """The result for the first operands, and how far off a way may be; float32."""

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
                f"{count} of {wrong.numel()} elements differ from float64 by more than "
                "rounding explains; the first by {:.3g}, where {:.3g} is allowed".format(*pair)
            )
        return float((error / self.tolerance.clamp_min(torch.finfo(torch.float32).tiny)).max())


def reference(group: Group, given: Operands) -> Reference:
    """For the first operands, evaluated in float64."""
    exact = _evaluated(group, given, Tensor.double)
    magnitude = _evaluated(group, given, lambda tensor: tensor.float().abs())
    unit = UNIT_ROUNDOFF[NAMES[group.dtype]]
    bound = relative(group, on_gpu=exact.device.type == "cuda") * magnitude
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


def _evaluated(group: Group, given: Operands, of: Callable[[Tensor], Tensor]) -> Tensor:
    """torch's own result for the operands that ``of`` gives, as float32, where none overflows."""
    geometry, weight = group.layer.geometry, of(given.weight)
    bias = None if given.bias is None else of(given.bias)
    images = max(1, PART // group.layer.elements(1))
    found: list[Tensor] = []
    with settings("fp32", "default"):
        for start in range(0, group.batch, images):
            x = of(given.x[0][start : start + images])
            if group.direction == "forward":
                found.append(forward(x, weight, bias, geometry, 1).float())
                continue
            gradient, which = of(given.gradient[0][start : start + images]), WHICH[group.direction]
            part = gradient_of(gradient, x, weight, geometry, 1, which)
            found.append(part.float() if which == 0 else part)
    if group.direction == "grad_weight":
        return torch.stack(found).sum(0).float()
    return torch.cat(found)


def poison(like: Tensor) -> None:
    """Fills the memory that the next result of this size is likely to get with NaN.

    torch's allocator hands out the block that was freed last; were it to hold an earlier, right
    result, elements that a kernel never writes would pass.
    """
    torch.full_like(like, float("nan"))
