"""A roofline model: the time that a form is expected to take on a target."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, prod
from typing import NamedTuple

from dwr_rewrite.cost.efficiency import Efficiency, kind_of, numbers_of, shipped
from dwr_rewrite.cost.target import Target, find_target
from dwr_rewrite.cost.work import work_of
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.workload import Workload

FMA_BLOCK = 1024
"""Results of a thread block of PyTorch's depthwise kernels, a thread each (DepthwiseConv2d.cu); and
about those of our own, whose tiles shrink until they fill the device."""

MATRIX_BLOCK = 64 * 64
"""Results of a thread block of a matrix product: the smallest tile that is typical of cuBLAS
(NVIDIA, Matrix Multiplication Background, section 2.3)."""


DEPTHWISE = ("keep", "kernel")
"""Kinds of forms that multiply no zeros."""


class Bounds(NamedTuple):
    """What limits a form, at the peaks of the target.

    Attributes:
        launches: steps one after the other.
        memory: seconds for its bytes.
        arithmetic: seconds for its flops.
    """

    launches: int
    memory: float
    arithmetic: float


@dataclass(frozen=True)
class Model:
    """What a target is expected to take for a form.

    Attributes:
        target: the device.
        efficiency: how much of its peaks it reaches.
    """

    target: Target
    efficiency: Efficiency = field(default_factory=Efficiency)

    def seconds(self, workload: Workload, recipe: Recipe) -> float:
        """Seconds of one call: its launches, and its bytes or its flops, whichever take longer."""
        launches, memory, arithmetic = self.bounds(workload, recipe)
        bandwidth, rate, launch = self.efficiency.of(workload, recipe)
        step = self.target.launch if launch is None else launch
        return launches * step + max(memory / bandwidth, arithmetic / rate)

    def bounds(self, workload: Workload, recipe: Recipe) -> Bounds:
        """The roofline before any efficiency.

        ``keep`` and our own kernels run on the ordinary units (those with a banded matrix do not,
        but what limits them is the memory, too), the other forms on matrix units where the target
        has them for the type. What is read just after it was written comes from the L2 where the
        packed weight fits into it. Both limits are stretched where the thread blocks do not fill
        whole waves over the multiprocessors.
        """
        work, target, kind = work_of(workload, recipe), self.target, kind_of(recipe)
        cached = work.reread_bytes if work.weight_bytes <= target.l2_bytes else 0
        busy = share_of_waves(thread_blocks(workload, kind), target.multiprocessors)
        memory = (work.bytes - cached) / target.bandwidth / busy
        rate = target.rate(numbers_of(workload), matrix=kind not in DEPTHWISE)
        return Bounds(work.launches, memory, work.flops / rate / busy)

    @property
    def margin(self) -> float:
        """How many times faster a form has to be expected before it is taken."""
        return self.efficiency.margin

    @property
    def sentence(self) -> str:
        """For a person: what the expectations rest on."""
        origin = "rates measured on it" if self.target.calibrated else "the peaks in its data sheet"
        taken = f"a form is taken only where it is expected to be {self.margin:.3g} times as fast"
        if not self.efficiency.factors:
            known = "no measured layer has been fitted for this device yet, so the error is unknown"
        else:
            errors = self.efficiency.errors
            known = (
                f"fitted to {errors['observations']:.0f} times of {errors['layers']:.0f} layers, "
                f"with an error of {errors['median']:.2f} times (90 % within {errors['p90']:.2f})"
            )
        return f"modelled for {self.target.title}, not measured: {origin}; {known}; {taken}"


def thread_blocks(workload: Workload, kind: str) -> int:
    """Blocks of threads that share a call: of a depthwise kernel, or of a matrix product.

    They share out the results. Those of a gradient of the weight are few: PyTorch's own kernel
    (NCHW, and not float16, which cuDNN may take) gives each a block; all others share out the long
    sums too, here by output elements.

    Args:
        workload: the convolution.
        kind: of its form; see :func:`~dwr_rewrite.cost.efficiency.kind_of`.
    """
    own_kernel = workload.layout == "nchw" and workload.spec.dtype != "float16"
    if workload.direction == "grad_weight" and kind == "keep" and own_kernel:
        return prod(workload.spec.weight_shape)
    gradient = workload.direction == "grad_input"
    shape = workload.input_shape if gradient else workload.output_shape
    return max(1, ceil(prod(shape) / (FMA_BLOCK if kind in DEPTHWISE else MATRIX_BLOCK)))


def share_of_waves(blocks: int, multiprocessors: int) -> float:
    """Share of the multiprocessors that work on average: the last wave is seldom full."""
    return blocks / (ceil(blocks / multiprocessors) * multiprocessors)


def load_model(name: str) -> Model:
    """The model of a target by its name, with what was fitted for it.

    Raises:
        DwrError: no such target; the message lists them.
    """
    target = find_target(name)
    return Model(target, shipped().get(target.name, Efficiency()))
