"""Evaluation of an ONNX model in float64: the yardstick that rounding errors are measured with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import RuntimeContextError
from onnx.reference.ops.op_loop import Loop

from dwr_rewrite.equivalence.subject import Evaluation
from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.float64_node import Node, key_of
from dwr_rewrite.passes.onnx.float64_ops import CONVOLUTIONS, Array
from dwr_rewrite.passes.onnx.float64_run import Run
from dwr_rewrite.passes.onnx.widen import (
    spell_out_defaults,
    take_weights,
    widen,
    widen_array,
    widen_function,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Mapping, Sequence

    from dwr_rewrite.equivalence.subject import Observe

_REFERENCE_ERRORS = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)


class Float64Evaluator:
    """Evaluates a model in float64, and again with the rounding errors of its operators.

    The difference between the outputs of a plain and a perturbed run is what the errors that the
    operators commit become at the outputs, with the condition of the network in between.

    Args:
        model: the model, or its path (external data is then loaded with it).
        rounding: how its operators round.
        sites: outputs of the convolutions whose largest input is recorded, in any scope.

    Raises:
        DwrError: a site is not in the model, or onnx.reference cannot load the model.
    """

    def __init__(
        self,
        model: ModelProto | str | os.PathLike[str],
        rounding: Rounding = Rounding(),  # noqa: B008  frozen
        sites: Collection[str] = (),
    ) -> None:
        """Widens the model and loads every operator of it."""
        if isinstance(model, ModelProto):
            own = ModelProto()
            own.CopyFrom(model)
        else:
            own = onnx.load(Path(model))
        weights = take_weights(own.graph)
        wide = widen(own)
        spell_out_defaults(wide)
        self._run = Run(rounding, frozenset(sites))
        bound: Any = type("_BoundScope", (_Scope,), {"shared": self._run})
        try:
            self._scope = bound(wide)
        except _REFERENCE_ERRORS as error:
            raise DwrError(f"the model cannot be evaluated in float64: {error}") from error
        self._scope.rt_inits_.update(weights)
        if missing := sorted(set(sites) - self._run.convolutions):
            raise DwrError(f"no convolution of the model has an output named {missing[0]!r}")

    def run(
        self,
        feeds: Mapping[str, Array],
        perturb: np.random.Generator | None = None,
        observe: Observe | None = None,
    ) -> Evaluation:
        """Evaluates the model.

        Args:
            feeds: inputs by name, in the model's own element types.
            perturb: source of the signs of rounding errors. Every sum of products y then becomes
                y + s gamma_n (|w| * |x|) and every floating-point result y + s u |y|, with s = -1
                or 1 for each element (see
                :class:`~dwr_rewrite.equivalence.tolerance.Rounding`).

            observe: told the value of every site when it is computed.

        Raises:
            DwrError: an input is missing, or nothing evaluates some operator; the message names it.
        """
        known = {*feeds, *self._scope.rt_inits_}
        if missing := [name for name in self._scope.input_names if name not in known]:
            raise DwrError(f"input {missing[0]!r} of the model is not among the feeds")
        self._run.begin(perturb, observe)
        with np.errstate(all="ignore"):
            wide = {name: widen_array(np.asarray(value)) for name, value in feeds.items()}
            try:
                values: Any = self._scope.run(None, wide)
            except _REFERENCE_ERRORS as error:  # of control flow: an operator raises DwrError
                raise DwrError(f"the model cannot be evaluated in float64: {error}") from error
        outputs = dict(zip(self._scope.output_names, values, strict=True))
        return Evaluation(outputs, dict(self._run.peak), tuple(sorted(self._run.single_precision)))


class _Scope(ReferenceEvaluator):
    """A graph, a subgraph or a function; onnx.reference runs it, :class:`Node` its operators.

    Subgraphs and functions are built with the class of the scope that holds them, so ``shared``,
    set in a subclass for each model, reaches all of them.
    """

    shared: ClassVar[Run]

    def __init__(self, proto: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(proto, FunctionProto):  # the one that a schema defines is not widened yet
            proto = widen_function(proto)
        super().__init__(proto, *args, **kwargs)

    def _load_impl(self, node: NodeProto, input_types: Any = None) -> Any:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            return _Loop if node.op_type == "Loop" else super()._load_impl(node, input_types)
        if (node.domain, node.op_type) in self.functions_:
            return super()._load_impl(node, input_types)
        if key_of(node) in CONVOLUTIONS:
            self.shared.convolutions.add(node.output[0])

        def build(node: NodeProto, run_params: Any) -> Node:
            return Node(node, self.shared, self.opsets, partial(self._reference, run_params))

        return build

    def _reference(self, run_params: Any, node: NodeProto, inputs: Sequence[Any]) -> Any:
        """onnx.reference's implementation of a node for inputs of these types."""
        load: Any = super()._load_impl
        try:
            return load(node)(node, run_params)
        except RuntimeContextError:
            types = [
                helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(x.dtype), None)
                for x in inputs
            ]
            return load(node, types)(node, run_params)


class _Loop(Loop):
    """Loop as the ONNX text has it.

    The one of onnx.reference (1.23) does nothing when there is no condition, and joins the scan
    outputs along their first axis instead of stacking them.
    """

    body: Any
    _run_body: Any

    def _run(
        self,
        trips: Array | None,
        condition: Array | None,
        *state: Any,
        context: Any = None,
        attributes: Any = None,
        **_: Any,
    ) -> tuple[Any, ...]:
        scans: list[list[Array]] = [[] for _ in range(self.K)]
        going, step = np.array(True) if condition is None else condition, 0
        while going and (trips is None or step < trips):
            given = zip(self.body.input_names, (np.array(step), going, *state), strict=True)
            feeds = {**context, **dict(given)}
            going, *values = self._run_body(feeds, attributes=attributes)
            state = tuple(values[: self.N])
            for scan, value in zip(scans, values[self.N :], strict=True):
                scan.append(value)
            step += 1
        return (*state, *(np.stack(scan) if scan else np.empty(0) for scan in scans))
