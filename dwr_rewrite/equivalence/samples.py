"""Seeded inputs: what they hold, and of which shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwr_rewrite.equivalence.tolerance import SMALLEST_NORMAL
from dwr_rewrite.errors import DwrError

Array = NDArray[Any]
Arrays = dict[str, Array]
Shapes = Mapping[str, tuple[int, ...]]

KINDS = (
    "normal", "uniform", "sparse", "large", "tiny", "denormal", "constant", "one-hot",
)  # fmt: skip
"""The seeded inputs:

- normal: standard normal; uniform: [0, 1);
- sparse: normal, nine of ten elements zero;
- large, tiny: normal times 2^10 or 2^-10 (float16: 2^4, 2^-4);
- denormal: normal times the smallest normal number, so that most are below it;
- constant: one value everywhere;
- one-hot: batch element i is normal in channel i (modulo the channels) and zero elsewhere.
"""

BATCHES = (2, 1)
"""Tried for a dynamic first dimension: two elements show that none leaks into the other."""

LENGTHS = (64, 224, 320, 32, 16, 8, 1, 1000, 16000)
"""Tried for every other dynamic dimension, until the model accepts one."""


class InputError(DwrError):
    """The given inputs or shapes do not fit, or none can be made."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What a model says of one input.

    Attributes:
        dtype: a numpy dtype name.
        shape: None for a length that is dynamic; None as a whole where the rank is not declared.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


def make_input(kind: str, dtype: str, shape: Sequence[int], rng: np.random.Generator) -> Array:
    """A seeded input.

    Args:
        kind: one of :data:`KINDS`.
        dtype: a numpy dtype name; integers are drawn from {0, 1}, which suits ids, masks and
            lengths alike, whatever the kind.
        shape: its shape, [N, C, ...] where it has channels.
        rng: where the randomness comes from.
    """
    return np.asarray(_values(kind, dtype, shape, rng)).astype(dtype)  # a scalar is no array


def _values(kind: str, dtype: str, shape: Sequence[int], rng: np.random.Generator) -> Array:
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if np.issubdtype(np.dtype(dtype), np.integer):
        return rng.integers(0, 2, shape)
    if kind == "constant":
        return np.full(shape, rng.uniform(0.5, 1.5))
    values = rng.random(shape) if kind == "uniform" else rng.standard_normal(shape)
    if kind == "sparse":
        values = values * (rng.random(shape) < 0.1)
    if kind == "one-hot" and len(shape) >= 2:
        alone = np.arange(shape[0])[:, None] % max(shape[1], 1) == np.arange(shape[1])
        values = values * alone.reshape(*shape[:2], *(1,) * (len(shape) - 2))
    return values * _magnitude(kind, dtype)


def _magnitude(kind: str, dtype: str) -> float:
    if kind == "denormal":
        return SMALLEST_NORMAL.get(dtype, SMALLEST_NORMAL["float32"])
    power = 4 if dtype == "float16" else 10
    return 2.0 ** {"large": power, "tiny": -power}.get(kind, 0)


class Inputs:
    """Makes inputs for one model.

    Args:
        declared: what the model declares, by name.
        shapes: wanted shapes by name.
        given: real inputs: case name -> input name -> array.

    Raises:
        InputError: a shape or an input does not fit.
    """

    def __init__(
        self,
        declared: Mapping[str, Declared],
        shapes: Shapes,
        given: Mapping[str, Mapping[str, Array]],
    ) -> None:
        """Checks what is given against what the model declares."""
        self.declared, self.wanted, self.given = declared, shapes, given
        for name in {*shapes, *(name for case in given.values() for name in case)}:
            if name not in declared:
                known = ", ".join(map(repr, declared)) or "none"
                raise InputError(f"the model has no input {name!r}; its inputs are {known}")
        for name, wanted in shapes.items():
            if not _fits(wanted, declared[name].shape):
                raise InputError(
                    f"--shape {name}:{_text(wanted)} does not fit the input, which is "
                    f"{_text(declared[name].shape)}"
                )
        for case in given.values():
            for name, array in case.items():
                _check_given(name, array, declared[name])

    def shapes(self, case: str = "") -> Iterator[Shapes]:
        """Shapes to try, best first; only one where nothing is dynamic.

        Args:
            case: name of a given case, whose own shapes stay.
        """
        fixed = dict(self.wanted)
        if case in self.given:
            fixed |= {name: array.shape for name, array in self.given[case].items()}
        open_ends = any(
            None in (declared.shape or (None,))
            for name, declared in self.declared.items()
            if name not in fixed
        )
        tried: list[Shapes] = []
        for batch, length in product(BATCHES, LENGTHS) if open_ends else [(1, 1)]:
            shapes = {
                name: fixed[name] if name in fixed else _closed(declared.shape or (), batch, length)
                for name, declared in self.declared.items()
            }
            if shapes not in tried:
                tried.append(shapes)
                yield shapes

    def feeds(self, kind: str, shapes: Shapes, rng: np.random.Generator) -> Arrays:
        """Inputs of these shapes: of a seeded kind, or a given case, with normal for the rest."""
        given = self.given.get(kind, {})
        return {
            name: given[name]
            if name in given
            else make_input("normal" if kind in self.given else kind, declared.dtype,
                            shapes[name], rng)
            for name, declared in self.declared.items()
        }  # fmt: skip

    def describe(self) -> str:
        """The inputs as ``--shape`` takes them, with ? for what is dynamic."""
        return ", ".join(f"{name}:{_text(d.shape)}" for name, d in self.declared.items())


def _closed(shape: tuple[int | None, ...], batch: int, length: int) -> tuple[int, ...]:
    return tuple((length if axis else batch) if n is None else n for axis, n in enumerate(shape))


def _check_given(name: str, array: Array, declared: Declared) -> None:
    if array.dtype.name != declared.dtype:
        raise InputError(f"the given input {name!r} is {array.dtype}; {declared.dtype} expected")
    if not _fits(array.shape, declared.shape):
        raise InputError(
            f"the given input {name!r} is {_text(array.shape)}, and the model's is "
            f"{_text(declared.shape)}"
        )


def _fits(wanted: Sequence[int], shape: tuple[int | None, ...] | None) -> bool:
    return shape is None or (
        len(wanted) == len(shape)
        and all(n in (None, w) for n, w in zip(shape, wanted, strict=True))
    )


def _text(shape: Sequence[int | None] | None) -> str:
    return "?" if shape is None else "x".join("?" if n is None else str(n) for n in shape)
