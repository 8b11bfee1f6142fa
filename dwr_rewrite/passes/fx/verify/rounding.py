"""The rounding errors of a model's operators, committed in a float64 evaluation.

Each result is moved by the bound on its rounding error, with random signs: how far the outputs move
is how far rounding may take them (:mod:`dwr_rewrite.equivalence.tolerance`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from dwr_rewrite.equivalence.tolerance import SMALLEST_NORMAL, Rounding
from dwr_rewrite.passes.fx.verify.bounds import COMPOUND, EXACT, sums

Bounds = Sequence[Tensor | None]


class RoundingErrors:
    """Commits rounding errors, one operator after the other.

    A result that is stored moves by at most half of itself, so that it keeps its sign and is never
    zero: else a root or a quotient of it would stop being a number, which no rounding does.

    Values of fewer than two axes move only where an input or a parameter reaches them: the others
    are positions, lengths and scales, and a length that is not a whole number any more would be
    another function.

    Args:
        rounding: how large they are.
        rng: where their signs come from.
    """

    def __init__(self, rounding: Rounding, rng: np.random.Generator) -> None:
        """Nothing is reached yet."""
        self.rounding = rounding
        self._seed = int(rng.integers(2**63))
        self._generators: dict[torch.device, torch.Generator] = {}
        self._reached: set[int] = set()
        self._depth = 0
        self._tiny = min(rounding.underflow, SMALLEST_NORMAL["float32"])  # of a product

    def reach(self, tensors: Iterable[Any]) -> None:
        """Says that these are inputs and parameters."""
        self._reached.update(_storage(t) for t in tensors if _rounds(t))

    def steps(self, func: Any) -> Callable[..., Any] | None:
        """What to run instead of a compound operator: its steps, each an operator."""
        return _decompositions().get(func)

    @contextmanager
    def inside(self) -> Generator[None]:
        """Within a compound operator: its kernel keeps the intermediate results in float32.

        It may also take the steps in another order, x * a + (b - m * a) for (x - m) * a + b. So a
        sum is off by the rounding of its larger operand there.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def bounds(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bounds | None:
        """What bounds the error of an operator's sums; None where it adds no products.

        To be asked before the operator runs, as it may change its operands.
        """
        name = name_of(func)
        if self._depth and name in ("add", "sub"):
            return [self.rounding.accumulate * (_magnitude(args[0]) + _magnitude(args[1]))]
        found = sums(name, args, self.rounding)
        if found is None:
            return None
        magnitudes = func(*tree_map(_magnitude, args), **tree_map(_magnitude, kwargs))
        return [
            None if size is None else _bound(size, gamma, terms * self._tiny)
            for size, (terms, gamma) in zip(_sequence(magnitudes), found, strict=True)
        ]

    def commit(self, func: Any, args: Any, result: Any, bounds: Bounds | None) -> Any:
        """The results of an operator, moved by its rounding errors.

        Args:
            func: the operator.
            args: all of its arguments.
            result: what it gave.
            bounds: what :meth:`bounds` said.
        """
        exact = name_of(func) in EXACT or _is_view(func)
        operands = [t for t in tree_leaves(args) if _rounds(t)]
        reached = any(_storage(t) in self._reached for t in operands)
        leaves, structure = tree_flatten(result)
        for index, y in enumerate(leaves):
            if not _rounds(y):
                continue
            if not exact and (reached or y.dim() >= 2):
                moved = self._moved(y, bounds[index] if bounds else None)
                leaves[index] = y.copy_(moved) if any(y is t for t in operands) else moved
            (self._reached.add if reached else self._reached.discard)(_storage(leaves[index]))
        return tree_unflatten(leaves, structure)

    def _moved(self, y: Tensor, bound: Tensor | None) -> Tensor:
        """One result, off by the bound and by the rounding of what is stored."""
        if y.is_complex():
            parts = self._moved(
                torch.view_as_real(y.resolve_conj()), None if bound is None else bound[..., None]
            )
            return torch.view_as_complex(parts)
        if self._depth:
            distance = _bound(y.abs(), self.rounding.accumulate, self._tiny)
        else:
            distance = _bound(y.abs(), self.rounding.store, self.rounding.underflow)
        if bound is not None:
            distance += bound
        moved = (y - distance).addcmul_(distance, self._coins(y), value=2)
        return moved if moved.sum().isfinite() else torch.where(moved.isfinite(), moved, y)

    def _coins(self, y: Tensor) -> Tensor:
        """Zeros and ones of the same shape."""
        generator = self._generators.get(y.device)
        if generator is None:
            generator = torch.Generator(y.device).manual_seed(self._seed)
            self._generators[y.device] = generator
        return torch.empty_like(y).bernoulli_(0.5, generator=generator)


def _bound(size: Tensor, relative: float, lost: float) -> Tensor:
    """A part of each magnitude; where it underflows what is lost, or half of it."""
    return torch.maximum(size * relative, (size / 2).clamp_(max=lost))


def name_of(func: Any) -> str:
    """Name of an operator without its overload, and without the underscore of one in place."""
    return func.overloadpacket.__name__.removesuffix("_")


@cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    return get_decompositions([getattr(torch.ops.aten, name) for name in sorted(COMPOUND)])


def _is_view(func: Any) -> bool:
    """Whether it returns its argument under another shape."""
    returned = [result.alias_info for result in func._schema.returns]  # noqa: SLF001
    return any(alias is not None and not alias.is_write for alias in returned)


def _rounds(value: Any) -> bool:
    """Whether it is a tensor of real or complex floating-point numbers, laid out in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and (value.is_floating_point() or value.is_complex())
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _magnitude(value: Any) -> Any:
    return abs(value) if _rounds(value) or isinstance(value, float) else value


def _sequence(values: Any) -> Sequence[Any]:
    return values if isinstance(values, tuple | list) else (values,)
