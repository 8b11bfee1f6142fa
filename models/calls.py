"""Counts the depthwise convolutions that a forward runs, below modules and graph alike."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Generator, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

Axes = tuple[int, ...]


class Call(NamedTuple):
    """One call whose groups are its input channels; `where` is the module that was running."""

    channels: int
    kernel: Axes
    stride: Axes
    dilation: Axes
    multiplier: int
    transposed: bool
    where: str = ""

    def __str__(self) -> str:
        """`5x5 s2 d2 m2`: what is 1 everywhere is left out, an axis is given once if all agree."""
        text = ("k" if len(self.kernel) == 1 else "") + "x".join(map(str, self.kernel))
        for letter, steps in (("s", self.stride), ("d", self.dilation)):
            if len(set(steps)) > 1:
                text += f" {letter}({','.join(map(str, steps))})"
            elif steps[0] > 1:
                text += f" {letter}{steps[0]}"
        text += f" m{self.multiplier}" if self.multiplier > 1 else ""
        return text + (" transposed" if self.transposed else "")


class _Recorder(TorchDispatchMode):
    """Sees every operator that reaches a kernel; every convolution becomes aten.convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.running: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, _, stride, _, dilation, transposed, _, groups = args
            if groups == x.shape[1] > 1:
                kernel = tuple(weight.shape[2:])
                steps = [
                    tuple(value) * (len(kernel) // len(value))  # one number stands for all axes
                    for value in (stride, dilation)
                ]
                multiplier = weight.shape[1] if transposed else weight.shape[0] // groups
                where = self.running[-1] if self.running else ""
                self.calls.append(Call(groups, kernel, *steps, multiplier, transposed, where))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _named(module: nn.Module, running: list[str]) -> Generator[None]:
    """Keeps the names of the modules that are running, the innermost last."""

    def enter(name: str, *_: Any) -> None:
        running.append(name)

    def leave(*_: Any) -> None:  # what a forward hook returns replaces the output
        running.pop()

    hooks = []
    for name, child in module.named_modules():
        hooks.append(child.register_forward_pre_hook(partial(enter, name)))
        hooks.append(child.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()  # not inference_mode, where a dispatch mode sees conv2d instead of convolution
def run(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, list[Call]]:
    """The output, and the calls whose kernel has more than one tap: scales are no convolution."""
    with _Recorder() as recorder, _named(module, recorder.running):
        output = module(*inputs)
    return output, [call for call in recorder.calls if math.prod(call.kernel) > 1]


def describe(calls: Iterable[Call]) -> str:
    """The different geometries, most frequent first: `8 of 3x3, 2 of 5x5 s2`."""
    counts = Counter(map(str, calls))
    return ", ".join(f"{count} of {kind}" for kind, count in counts.most_common())
