"""Builds a network from a `transformers` configuration; transformers is imported only then."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Output(nn.Module):
    """Takes one tensor and returns one tensor of a transformers model."""

    def __init__(
        self,
        model: nn.Module,
        output: str | None,
        pick: int,
        argument: str | None,
        constants: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.pick = pick
        self.argument = argument
        self.constants = constants

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.argument is None:
            result = self.model(x, **self.constants)
        else:
            result = self.model(**{self.argument: x}, **self.constants)
        if self.output is None:
            return result
        value = getattr(result, self.output)
        return value[self.pick] if isinstance(value, tuple) else value


def architecture(
    config: str,
    model: str,
    *,
    output: str | None = "logits",
    pick: int = -1,
    argument: str | None = None,
    constants: dict[str, Any] | None = None,
    **options: Any,
) -> Callable[[], nn.Module]:
    """A builder of `model`, whose class lies beside that of `config`, from `options`.

    `output` names the field of the result, None where that is the tensor, and `pick` one of several
    tensors in it. `argument` names the parameter that takes the input, where it is not the first;
    `constants` are further arguments.
    """

    def build() -> nn.Module:
        import transformers

        settings = getattr(transformers, config)(**options)
        module = importlib.import_module(
            type(settings).__module__.replace(".configuration_", ".modeling_")
        )
        return Output(getattr(module, model)(settings), output, pick, argument, constants or {})

    return build
