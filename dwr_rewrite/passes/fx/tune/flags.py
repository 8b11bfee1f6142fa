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
    name = "tf32" if tf32 else "ieee"
    with ExitStack() as stack:
        stack.enter_context(flag(CUDNN.conv, "fp32_precision", name))
        if products:
            stack.enter_context(flag(torch.backends.cuda.matmul, "fp32_precision", name))
        yield
