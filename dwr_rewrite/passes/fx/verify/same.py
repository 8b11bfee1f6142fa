"""Whether two values, of which one may be a copy of the other, are the same: tensors bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def different(one: Tensor, other: Tensor) -> Tensor | None:
    """Where two tensors of one shape and element type differ in a bit; None where nowhere.

    So a NaN is the same as that NaN, and -0.0 is not 0.0. What lies on two devices is compared on
    the CPU.
    """
    one, other = _bits(one), _bits(other)
    if one.device != other.device:
        one, other = one.cpu(), other.cpu()
    return None if torch.equal(one, other) else one != other


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point():
        return tensor.resolve_neg().view(_BITS[tensor.element_size()])
    return tensor


def tensor_difference(name: str, one: Tensor, other: Tensor) -> str:
    """A sentence about the first element that differs; empty for none.

    Args:
        name: of the tensor.
        one: in the reference.
        other: in the candidate.
    """
    if describe(one) != describe(other):
        return f"{name!r} is {describe(one)} and became {describe(other)}"
    if one.layout is not torch.strided or one.is_quantized:
        return "" if same(one.cpu().to_dense(), other.cpu().to_dense()) else f"{name!r} differs"
    where = different(one, other)
    if where is None:
        return ""
    index = tuple(where.nonzero()[0].tolist())[: one.dim()]
    count = int(where.sum())
    more = f" ({count} elements differ)" if count > 1 else ""
    before, after = one[index].item(), other[index].item()
    return f"{name!r}{list(index)} is {before:.9g} and became {after:.9g}{more}"


def describe(tensor: Tensor) -> str:
    """Element type and shape, for a sentence."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def same(one: Any, other: Any, seen: set[tuple[int, int]] | None = None) -> bool:
    """Whether two plain values, containers, functions or objects hold the same.

    Args:
        one: a value.
        other: another.
        seen: pairs that were found the same, or are being compared further out.
    """
    seen = set() if seen is None else seen
    if one is other or (id(one), id(other)) in seen:
        return True
    if type(one) is not type(other):
        return False
    seen.add((id(one), id(other)))
    match one:
        case Tensor():
            return tensor_difference("", one, other) == ""
        case np.ndarray():
            return one.dtype == other.dtype and one.tobytes() == other.tobytes()
        case Mapping():
            return list(one) == list(other) and all(same(one[k], other[k], seen) for k in one)
        case list() | tuple():
            return len(one) == len(other) and all(
                same(a, b, seen) for a, b in zip(one, other, strict=True)
            )
        case FunctionType() | MethodType() | partial():
            return same(_parts(one), _parts(other), seen)
        case type() | ModuleType() | BuiltinFunctionType():
            return False
        case _:
            return _same_objects(one, other, seen)


def _parts(function: Any) -> tuple[Any, ...]:
    """What makes a function do what it does."""
    match function:
        case MethodType():
            return function.__func__, function.__self__
        case partial():
            return function.func, function.args, function.keywords
        case _:
            cells = [cell.cell_contents for cell in function.__closure__ or ()]
            return function.__code__, function.__defaults__, function.__kwdefaults__, cells


def _same_objects(one: Any, other: Any, seen: set[tuple[int, int]]) -> bool:
    if type(one).__eq__ is not object.__eq__:
        return bool(one == other) or (one != one and other != other)
    return hasattr(one, "__dict__") and same(vars(one), vars(other), seen)
