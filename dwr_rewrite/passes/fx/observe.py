"""Finds depthwise convolutions that a module calls as functions, by running it once.

Without tracing, only convolution modules can be rewritten. A run on example inputs shows what else
convolves, so that nothing is missed silently.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.passes.fx.decide import left
from dwr_rewrite.report import SiteReport


class _Depthwise(TorchDispatchMode):
    """Notes in which module each convolution ran whose groups are its input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = [""]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, groups = args[0], args[1], args[8]
            if groups == x.shape[1] > 1 and prod(weight.shape[2:]) > 1:
                self.found.append(self.running[-1])
        return func(*args, **(kwargs or {}))


def functional_calls(
    model: nn.Module, args: Sequence[Any], named: Mapping[str, Any], known: Iterable[str]
) -> list[SiteReport]:
    """A report for every depthwise call outside of the ``known`` modules.

    Args:
        model: run once, in eval mode, so that no statistics move.
        args: its positional arguments.
        named: its keyword arguments.
        known: names of the modules that are reported already.

    Raises:
        DwrError: the model does not run on them.
    """
    seen, reports = set(known), list[SiteReport]()
    for place in _run(model, args, named):
        if place not in seen:
            where = type(model.get_submodule(place)).__name__
            reason = Rejection("functional-call", f"the forward of {where} calls it as a function; "
                               f"trace or export the model to reach it")  # fmt: skip
            reports.append(left(place or "(model)", "convolution", reason))
    return reports


def _run(model: nn.Module, args: Sequence[Any], named: Mapping[str, Any]) -> list[str]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), _Depthwise() as mode, _named(model, mode.running):
            model(*args, **named)
    except Exception as error:
        raise DwrError(f"{type(model).__name__} does not run on the example inputs: "
                       f"{first_line(error)}") from error  # fmt: skip
    finally:
        for module, training in modes:
            module.training = training
    return mode.found


@contextmanager
def _named(model: nn.Module, running: list[str]) -> Generator[None]:
    """Keeps the names of the modules that are running, the innermost last."""

    def enter(name: str, *_: Any) -> None:
        running.append(name)

    def leave(*_: Any) -> None:  # what a hook returns would replace the output
        running.pop()

    hooks = [
        hook
        for name, module in model.named_modules()
        for hook in (
            module.register_forward_pre_hook(partial(enter, name)),
            module.register_forward_hook(leave),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
