"""A torch model in float64, whatever element types its code asks for."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map_only

from dwr_rewrite.kernels import ops
from dwr_rewrite.passes.fx.verify.rounding import RoundingErrors
from dwr_rewrite.passes.fx.verify.running import eager

OURS = ops.decompositions()
"""Our operators as torch's."""


class Float64(TorchDispatchMode):
    """Makes every operator below it compute in float64, those of a backward pass too.

    Tensors of a shorter type are widened before an operator sees them, and element types among its
    arguments become float64. Random numbers are drawn in the type that the code asks for, so that
    they are the same numbers. An operator without a float64 kernel runs in float32.

    Args:
        errors: commits the rounding error of every operator; None for the exact evaluation.

    Attributes:
        single_precision: operators that ran in float32.
    """

    supports_higher_order_operators = True

    def __init__(self, errors: RoundingErrors | None = None) -> None:
        """Nothing ran yet."""
        super().__init__()
        self.errors = errors
        self.single_precision: set[str] = set()
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Widens and runs one operator, and commits its errors."""
        args, kwargs = tree_map_only(Tensor, self._stand_in, (args, kwargs or {}))
        if isinstance(func, HigherOrderOperator):
            return control_flow(self, func, args, kwargs)
        if func in OURS:  # the truth does not rest on our kernels
            with self:
                return OURS[func](*args, **kwargs)
        if torch.is_inference_mode_enabled():  # it keeps operators whole that else come in parts
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if not (_is_random(func) or func is torch.ops.aten.view.dtype):  # that one looks at bits
            args, kwargs = tree_map_only(torch.dtype, wide, (args, kwargs))
        if self.errors is None:
            return self._run(func, args, kwargs)
        steps, bounds = self.errors.steps(func), None
        if steps is None:
            bounds = self.errors.bounds(func, args, kwargs)
            result = self._run(func, args, kwargs)
        else:
            with self, self.errors.inside():
                result = steps(*args, **kwargs)
        return self.errors.commit(func, (args, kwargs), result, bounds)

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """A constant of a shorter type, widened; one for each, as the code may write into it."""
        if wide(tensor.dtype) == tensor.dtype:
            return tensor
        if id(tensor) not in self._stand_ins:
            self._stand_ins[id(tensor)] = tensor, widened(tensor)
        return self._stand_ins[id(tensor)][1]

    def _run(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        try:
            result = func(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  kernels refuse float64 in many words
            result = self._run_single(func, args, kwargs, error)
        if _makes_constants(func, args, kwargs) and tree_any(_is_narrow, result):
            return func(*args, **{**kwargs, "dtype": torch.float64})  # not of the default type
        return tree_map_only(Tensor, widened, result)

    def _run_single(self, func: Any, args: Any, kwargs: Mapping[str, Any], error: Exception) -> Any:
        """Runs an operator in float32; what it writes into its arguments comes back to them."""
        copies: dict[int, tuple[Tensor, Tensor]] = {}

        def narrow(tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float64:
                return tensor
            return copies.setdefault(id(tensor), (tensor, tensor.float()))[1]

        narrowed = tree_map_only(Tensor, narrow, (args, kwargs))
        narrowed = tree_map_only(torch.dtype, _narrower, narrowed)
        try:
            result = func(*narrowed[0], **narrowed[1])
        except Exception:  # noqa: BLE001  it was not for want of a kernel
            raise error from None
        self.single_precision.add(func.name())
        for tensor in _written(func, args, kwargs):
            if id(tensor) in copies:
                tensor.copy_(copies[id(tensor)][1])
        originals = {id(copy): tensor for tensor, copy in copies.values()}
        return tree_map_only(Tensor, lambda y: originals.get(id(y), y), result)


@contextmanager
def float64(errors: RoundingErrors | None = None) -> Generator[Float64]:
    """Everything within runs in float64; kernels that fuse attention or a whole layer are off."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        with sdpa_kernel(SDPBackend.MATH), eager(), Float64(errors) as mode:
            yield mode
    finally:
        torch.backends.mha.set_fastpath_enabled(value=fused)


def control_flow(
    mode: TorchDispatchMode, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Runs an operator that runs graphs: a condition's within the mode, the others' without."""
    if func is not torch.ops.higher_order.cond:
        return func(*args, **kwargs)
    condition, chosen, other, operands = args
    with mode:
        return (chosen if condition else other)(*operands)


def wide(dtype: torch.dtype) -> torch.dtype:
    """float64 or complex128 for every shorter type of their kind, and any other type as it is."""
    if dtype.is_floating_point:
        return torch.float64
    return torch.complex128 if dtype.is_complex else dtype


def _narrower(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else dtype


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and wide(value.dtype) != value.dtype


def _makes_constants(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator takes no tensor, draws no numbers, and can be told an element type."""
    typed = any(formal.name == "dtype" for formal in func._schema.arguments)  # noqa: SLF001
    given = any(isinstance(value, Tensor) for value in tree_leaves((args, kwargs)))
    return typed and not given and not _is_random(func)


def widened(tensor: Tensor) -> Tensor:
    """A tensor in the type that :func:`wide` gives."""
    return tensor.to(wide(tensor.dtype))


def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an operator changes."""
    formals = func._schema.arguments  # noqa: SLF001
    given = {formal.name: value for formal, value in zip(formals, args, strict=False)}
    values = (
        {**given, **kwargs}.get(formal.name)
        for formal in formals
        if formal.alias_info is not None and formal.alias_info.is_write
    )
    return [value for value in tree_leaves(list(values)) if isinstance(value, Tensor)]
