"""torch's global flags, for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def flag(owner: Any, name: str, value: object) -> Generator[None]:
    """Sets a flag unless it has this value, and puts the one before back."""
    before = getattr(owner, name)
    if before == value:
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


CUDNN: Any = torch.backends.cudnn
"""Its ``conv`` is missing in torch's types."""


def allows_tf32() -> bool:
    """Whether cuDNN may round the factors of a float32 convolution to TF32."""
    return CUDNN.conv.fp32_precision == "tf32"


@contextmanager
def precision(tf32: bool, products: bool = False) -> Generator[None]:
    """With TF32 for float32 convolutions, or without.

    Args:
        tf32: whether it is allowed.
        products: for matrix products too.
    """
    with ExitStack() as stack:
        stack.enter_context(_convolutions(tf32))
        if products:
            name = "tf32" if tf32 else "ieee"
            stack.enter_context(flag(torch.backends.cuda.matmul, "fp32_precision", name))
        yield


@contextmanager
def _convolutions(tf32: bool) -> Generator[None]:
    """By the older flag, for all of cuDNN, as far as it goes.

    Inductor reads it, and torch lets nobody do so while the newer flags of single operators differ.
    """
    if allows_tf32() == tf32:
        yield
        return
    operators = CUDNN.conv, CUDNN.rnn
    before = [operator.fp32_precision for operator in operators]
    CUDNN.allow_tf32 = tf32
    with ExitStack() as stack:
        if allows_tf32() != tf32:  # inherited from torch.backends.fp32_precision
            stack.enter_context(flag(CUDNN.conv, "fp32_precision", "tf32" if tf32 else "ieee"))
        try:
            yield
        finally:
            CUDNN.allow_tf32 = not tf32
            for operator, value in zip(operators, before, strict=True):
                if operator.fp32_precision != value:
                    operator.fp32_precision = value
