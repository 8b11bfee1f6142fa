"""In which floating-point types a model computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dwr_rewrite.passes.fx.verify.float64 import control_flow


class Types(TorchDispatchMode):
    """Counts the operators below it, and notes the floating-point types of their results.

    Attributes:
        found: names of the types.
        count: how many operators ran.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        """Nothing ran yet."""
        super().__init__()
        self.found: set[str] = set()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs one operator."""
        if isinstance(func, HigherOrderOperator):
            return control_flow(self, func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        self.count += 1
        self.found.update(
            type_name(value.dtype)
            for value in tree_leaves(result)
            if isinstance(value, Tensor) and value.is_floating_point()
        )
        return result


def type_name(dtype: torch.dtype) -> str:
    """As numpy has it."""
    return str(dtype).removeprefix("torch.")
