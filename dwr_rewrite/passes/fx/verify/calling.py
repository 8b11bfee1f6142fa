"""How a torch model is called: example arguments by name, tensors as numpy arrays and back."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import (
    GetAttrKey,
    MappingKey,
    SequenceKey,
    TreeSpec,
    tree_flatten_with_path,
    tree_unflatten,
)

from dwr_rewrite.equivalence.samples import Arrays, Declared
from dwr_rewrite.equivalence.statistics import Array
from dwr_rewrite.errors import DwrError


@dataclass(frozen=True)
class Call:
    """The arguments of a model's forward.

    Attributes:
        examples: its tensors, by the name of the parameter that takes them.
        declared: what the model says of them.
        leaves: every argument, flattened; a tensor is there as its name.
        structure: of (positional arguments, keyword arguments).
    """

    examples: Arrays
    declared: Mapping[str, Declared]
    leaves: Sequence[Any]
    structure: TreeSpec

    @classmethod
    def of(
        cls,
        model: nn.Module,
        examples: Any,
        program: ExportedProgram | None = None,
        names: Sequence[str] | None = None,
    ) -> Call:
        """The call that some example arguments make.

        Args:
            model: what is called.
            examples: a tensor, a sequence of positional arguments, or keyword arguments by name;
                tensors may be numpy arrays.
            program: where ``model`` comes from: its dynamic lengths are declared as such.
            names: what to call the tensors instead, in order.

        Raises:
            DwrError: there is no tensor among them, or not as many as names.
        """
        parameters = _parameters(model)
        entries, structure = tree_flatten_with_path(as_arguments(examples))
        shapes = _program_shapes(program) if program else {}
        arrays: Arrays = {}
        declared: dict[str, Declared] = {}
        leaves: list[Any] = []
        for path, value in entries:
            if not isinstance(value, Tensor | np.ndarray):
                leaves.append(value)
                continue
            own = _input_name(path, parameters)
            name = own if names is None else next(iter(names[len(arrays) :]), own)
            arrays[name] = to_numpy(value) if isinstance(value, Tensor) else value
            shape = shapes.get(own.replace(".", "_"), arrays[name].shape)
            declared[name] = Declared(arrays[name].dtype.name, shape)
            leaves.append(_Named(name))
        if names is not None and list(arrays) != list(names):
            raise DwrError(f"the inputs {list(names)} were expected, and the example inputs are "
                           f"{list(arrays)}")  # fmt: skip
        if not arrays:
            raise DwrError("the example inputs hold no tensor: give the arguments of the model's "
                           "forward, as a tuple or as a dict by name")  # fmt: skip
        return cls(arrays, declared, leaves, structure)

    def bind(self, tensors: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with these tensors, by name."""
        values = [tensors[leaf.name] if isinstance(leaf, _Named) else leaf for leaf in self.leaves]
        return tree_unflatten(values, self.structure)


@dataclass(frozen=True)
class _Named:
    """Stands for the tensor of this name."""

    name: str


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Those of ``forward``; none where it has no signature, as in TorchScript."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except ValueError:
        return []


def as_arguments(examples: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, from a tensor, a sequence, or a dict by name."""
    if isinstance(examples, Mapping):
        return (), dict(examples)
    return ((examples,) if isinstance(examples, Tensor | np.ndarray) else tuple(examples)), {}


def _program_shapes(program: ExportedProgram) -> dict[str, tuple[int | None, ...]]:
    """The shapes that a program declares, by the name of its input; None for a dynamic length."""
    return {
        node.name: tuple(n if type(n) is int else None for n in value.shape)
        for node in program.graph.find_nodes(op="placeholder")
        if isinstance(value := node.meta.get("val"), Tensor)
    }


def _input_name(path: Sequence[Any], parameters: Sequence[inspect.Parameter]) -> str:
    keyword, place, *rest = (_text(key) for key in path)
    if keyword == "0":  # positional
        index = int(place)
        plain = index < len(parameters) and parameters[index].kind in (
            inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )  # fmt: skip
        place = parameters[index].name if plain else f"input{index}"
    return ".".join([place, *rest])


def outputs_of(result: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a model returned, by their path; one alone is called ``output``."""
    for path, value in tree_flatten_with_path(result)[0]:
        if isinstance(value, Tensor) and value.layout is torch.strided:
            yield ".".join(map(_text, path)) or "output", value


def _text(key: Any) -> str:
    match key:
        case SequenceKey(idx=value) | MappingKey(key=value) | GetAttrKey(name=value):
            return str(value)
        case _:
            return str(key)


def to_numpy(tensor: Tensor) -> Array:
    """A tensor as an array; bfloat16 by ml_dtypes, and complex numbers as pairs of real ones."""
    tensor = tensor.detach().cpu()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes  # which a rewrite can do without

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.resolve_neg().numpy()


def to_torch(array: Array) -> Tensor:
    """The inverse of :func:`to_numpy`; the tensor shares no memory with the array."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
