"""Inputs that a model can be run on: given ones, and seeded ones of the shapes it declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.fold import dtype_name
from dwr_rewrite.verify import make_input

Arrays = dict[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]

BATCHES = (2, 1)
"""Tried for a dynamic first dimension: two elements show that none leaks into the other."""

LENGTHS = (64, 224, 320, 32, 16, 8, 1, 1000, 16000)
"""Tried for every other dynamic dimension, until the model accepts one."""


class InputError(DwrError):
    """The given inputs or shapes do not fit, or none can be made."""


class Inputs:
    """Makes inputs for one model.

    Args:
        model: its graph inputs, without those that are initializers, have to be fed.
        shapes: wanted shapes by name.
        given: real inputs by name.

    Raises:
        InputError: a shape or an input does not fit, or an input is no tensor.
    """

    def __init__(self, model: ModelProto, shapes: Shapes, given: Arrays) -> None:
        """Checks what is given against what the model declares."""
        self.given = given
        self.declared = dict(_declared(model))
        for name in (*given, *shapes):
            if name not in self.declared:
                known = ", ".join(map(repr, self.declared)) or "none"
                raise InputError(f"the model has no input {name!r}; its inputs are {known}")
        self.wanted = {name: array.shape for name, array in given.items()} | dict(shapes)
        for name, (dtype, shape) in self.declared.items():
            wanted, array = self.wanted.get(name), given.get(name)
            if array is not None and array.dtype.name != dtype:
                raise InputError(f"the given input {name!r} is {array.dtype}; {dtype} expected")
            if array is not None and not _fits(array.shape, shape):
                raise InputError(
                    f"the given input {name!r} is {_text(array.shape)}, and the model's is "
                    f"{_text(shape)}"
                )
            if wanted is not None and not _fits(wanted, shape):
                raise InputError(
                    f"--shape {name}:{_text(wanted)} does not fit the input, which is "
                    f"{_text(shape)}"
                )

    def shapes(self) -> Iterator[Shapes]:
        """Shapes to try, best first; only one where nothing is dynamic."""
        open_ends = any(
            None in (shape or (None,))
            for name, (_, shape) in self.declared.items()
            if name not in self.wanted
        )
        for batch, length in product(BATCHES, LENGTHS) if open_ends else [(1, 1)]:
            yield {
                name: self.wanted.get(name)
                or tuple(n or (length if axis else batch) for axis, n in enumerate(shape or ()))
                for name, (_, shape) in self.declared.items()
            }

    def feeds(self, kind: str, shapes: Shapes, rng: np.random.Generator) -> Arrays:
        """Inputs of these shapes: of a seeded kind, or the given ones, with seeded for the rest."""
        return {
            name: self.given[name]
            if name in self.given and kind == "given"
            else make_input("normal" if kind == "given" else kind, dtype, shapes[name], rng)
            for name, (dtype, _) in self.declared.items()
        }

    def describe(self) -> str:
        """The inputs as ``--shape`` takes them, with ? for what is dynamic."""
        return ", ".join(f"{name}:{_text(shape)}" for name, (_, shape) in self.declared.items())


def _declared(
    model: ModelProto,
) -> Iterator[tuple[str, tuple[str, tuple[int | None, ...] | None]]]:
    """Element type and shape by name; None for a dynamic length, and for a rank not declared."""
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in stored:
            continue
        if not value.type.HasField("tensor_type"):
            raise InputError(f"the input {value.name!r} is no tensor, and only tensors can be fed")
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value or None for d in tensor.shape.dim)
        yield (
            value.name,
            (dtype_name(tensor.elem_type), shape if tensor.HasField("shape") else None),
        )


def _fits(wanted: Sequence[int], shape: tuple[int | None, ...] | None) -> bool:
    return shape is None or (
        len(wanted) == len(shape)
        and all(n in (None, w) for n, w in zip(shape, wanted, strict=True))
    )


def _text(shape: Sequence[int | None] | None) -> str:
    return "?" if shape is None else "x".join("?" if n is None else str(n) for n in shape)
