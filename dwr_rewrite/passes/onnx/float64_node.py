"""One operator in float64: which implementation evaluates it, and the rounding of a convolution.

An implementation is tried when the one before it fails, in this order: a convolution of
:mod:`dwr_rewrite.recipe` or an operator of :mod:`~dwr_rewrite.passes.onnx.float64_ops`;
onnxruntime's double kernel; onnx.reference; onnxruntime's float32 kernel, which is recorded.
"""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, ValueInfoProto, defs, helper

from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.float64_ops import (
    CONVOLUTIONS,
    OPERATORS,
    Array,
    Attributes,
    Geometry,
    activation,
)
from dwr_rewrite.passes.onnx.float64_run import Run, magnitudes_of
from dwr_rewrite.passes.onnx.widen import bind, widen_array, widen_node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Implementation = Callable[[Sequence[Any]], Sequence[Any]]

_REFERENCE_FIRST = frozenset({"Constant", "Attention"})
"""Constant: its tensor need not travel to a session. Attention: onnxruntime has no double kernel
and expands the function of the schema, in which the scale factor is a float32."""

_REFERENCE_NEVER = frozenset(
    {
        "AffineGrid", "AveragePool", "DeformConv", "DequantizeLinear", "DynamicQuantizeLinear",
        "Erf", "GridSample", "LpPool", "MaxPool",
    }
)  # fmt: skip
"""onnx.reference has float32 inside, or loops over the elements in Python (pooling)."""

_CHOOSING = frozenset({"Resize", "Upsample"})
"""In nearest mode they choose elements, by coordinates in float32. Another choice would be another
function and not another rounding, so onnxruntime makes it, on indices."""

_IR_VERSION = 10
"""Of the single-operator models: enough for every element type, old enough for every runtime."""


_SUMS = frozenset({"Gemm", "MatMul"})
"""Sums of products besides the convolutions."""

_EXACT = frozenset(
    {
        "Abs", "Clip", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand",
        "Flatten", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "Identity", "Max",
        "MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ScatterND",
        "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze",
        "Where",
    }
)  # fmt: skip
"""They choose or move values and round nothing."""


class Node:
    """An operator without subgraphs, with the interface of onnx.reference's OpRun.

    Every floating-point output is float64, whatever computed it.

    Args:
        node: the operator, widened unless it takes attributes from the function that it is in.
        shared: what it shares with the rest of its model.
        opsets: versions by domain.
        reference: gives onnx.reference's implementation for a node and inputs.
    """

    def __init__(
        self,
        node: NodeProto,
        shared: Run,
        opsets: Mapping[str, int],
        reference: Callable[[NodeProto, Sequence[Any]], Any],
    ) -> None:
        """Chooses the candidates; nothing is loaded before the first run."""
        self.node, self.shared, self.opsets, self.reference = node, shared, opsets, reference
        self.op_type, self.input, self.output = node.op_type, node.input, node.output
        self.has_linked_attribute = any(a.ref_attr_name for a in node.attribute)

    def need_context(self) -> bool:
        """Whether it reads values of the scope around it: no, only subgraphs do."""
        return False

    def run(self, *inputs: Any, linked_attributes: Attributes | None = None) -> tuple[Any, ...]:
        """The outputs for these inputs, None for one that is left out."""
        if self.has_linked_attribute:
            bound = widen_node(bind(self.node, linked_attributes or {}))
            return Node(bound, self.shared, self.opsets, self.reference).run(*inputs)
        failure = ""
        for implementation in self.candidates:
            try:
                return self._rounded(implementation, inputs)
            except Exception as error:  # noqa: BLE001  whatever it is, try the next
                failure = first_line(error)
        raise DwrError(
            f"nothing evaluates {'::'.join(filter(None, key_of(self.node)))}"
            f" (node {self.node.name!r}, output {self.output[0]!r}): {failure}"
        )

    @cached_property
    def candidates(self) -> list[Implementation]:
        """The implementations, best first."""
        key = key_of(self.node)
        if key in CONVOLUTIONS:
            return [self._convolution]
        if self.op_type in _CHOOSING and self.attributes.get("mode", b"nearest") == b"nearest":
            return [self._choice, self._single]
        others = [self._double, self._reference, self._single]
        if key in OPERATORS:
            others.insert(0, self._operator)
        if self.op_type in _REFERENCE_NEVER:
            others.remove(self._reference)
        if self.op_type in _REFERENCE_FIRST:
            others.sort(key=lambda candidate: candidate != self._reference)
        return others

    @cached_property
    def attributes(self) -> Attributes:
        """Attributes by name; strings are bytes."""
        return {a.name: helper.get_attribute_value(a) for a in self.node.attribute}

    def _convolution(self, inputs: Sequence[Any]) -> Sequence[Array]:
        operands: list[Any] = [*inputs, None, None][:4]
        x, weight, _, _ = operands
        transposed = self.op_type == "ConvTranspose"
        geometry = Geometry.of(self.attributes, x.shape, weight.shape, transposed=transposed)
        activate = activation(self.attributes)

        def total(x: Array, weight: Array, bias: Array | None, summand: Array | None) -> Array:
            # the summand is Z of a FusedConv
            y = geometry.convolve(x, weight, bias)
            return y if summand is None else y + summand

        y, site = total(*operands), self.output[0]
        if site in self.shared.sites:
            peak = float(np.max(np.abs(x), initial=0))
            self.shared.peak[site] = max(peak, self.shared.peak.get(site, 0))
        if self.shared.perturb is not None:
            terms = x.shape[1] // geometry.groups * prod(weight.shape[2:])
            terms += sum(v is not None for v in operands[2:])
            magnitude = magnitudes_of(total, operands)
            y = self.shared.moved(y, self.shared.rounding.of_sum(magnitude, terms))
        y = activate(y)
        if site in self.shared.sites and self.shared.observe is not None:
            self.shared.observe(site, y)
        return [y]

    def _rounded(
        self, implementation: Implementation, inputs: Sequence[Any]
    ) -> tuple[Array | Any, ...]:
        """The outputs, in a perturbed run moved by their rounding errors.

        Values of fewer than two axes stay: they are shapes and scales more often than activations,
        and a length that is not a whole number any more would be another function.
        """
        outputs = list(map(_widened, implementation(inputs)))
        if self.shared.perturb is None or self.op_type in _EXACT:
            return tuple(outputs)
        rounding = self.shared.rounding
        if self.op_type in _SUMS:
            (magnitude,) = implementation([None if x is None else np.abs(x) for x in inputs])
            terms = inputs[0].shape[-2 if self.attributes.get("transA") else -1]
            bound = rounding.of_sum(np.abs(magnitude), terms + len(inputs) - 2)
            outputs[0] = self.shared.moved(outputs[0], bound)
        return tuple(
            self.shared.moved(y, rounding.of_result(y)) if _is_activation(y) else y for y in outputs
        )

    def _operator(self, inputs: Sequence[Any]) -> Sequence[Array]:
        return [OPERATORS[key_of(self.node)](self.attributes, *inputs)]

    def _choice(self, inputs: Sequence[Any]) -> Sequence[Array]:
        if self.attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
            raise NotImplementedError("extrapolation is not a choice of elements")
        x, *rest = inputs
        indices = np.arange(x.size, dtype=np.int32).reshape(x.shape)
        (chosen,) = self._in_session([indices, *map(_narrowed, rest)])
        return [x.ravel()[chosen]]

    def _reference(self, inputs: Sequence[Any]) -> Sequence[Any]:
        return self.reference(self.node, inputs).run(*inputs)

    def _double(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """In float64, but for inputs that the schema declares as float32 (scales of Resize)."""
        given = [
            _narrowed(x) if index in self._float32_inputs else x for index, x in enumerate(inputs)
        ]
        outputs = self._in_session(given)
        rounded = any(
            x is not None and not np.array_equal(x, g, equal_nan=g.dtype == np.float32)
            for x, g in zip(inputs, given, strict=True)
            if g is not x
        )
        if rounded or any(y.dtype == np.float32 for y in outputs):
            self.shared.single_precision.add(self.op_type)
        return outputs

    def _single(self, inputs: Sequence[Any]) -> Sequence[Any]:
        outputs = self._in_session([_narrowed(x) for x in inputs])
        self.shared.single_precision.add(self.op_type)
        return outputs

    @cached_property
    def _float32_inputs(self) -> set[int]:
        domain, op_type = key_of(self.node)
        try:
            schema = defs.get_schema(op_type, self.opsets.get(domain, 1), domain)
        except defs.SchemaError:
            return set()
        return {i for i, formal in enumerate(schema.inputs) if formal.type_str == "tensor(float)"}

    def _in_session(self, inputs: Sequence[Any]) -> list[Any]:
        """Runs the operator alone in onnxruntime; equal operators share a session."""
        if any(x is not None and not isinstance(x, np.ndarray | np.generic) for x in inputs):
            raise TypeError("onnxruntime is used for tensors only")
        arrays = {f"x{i}": np.asarray(x) for i, x in enumerate(inputs) if x is not None}
        key = (self._anonymous, tuple((name, x.dtype) for name, x in arrays.items()))
        if key not in self.shared.sessions:
            self.shared.sessions[key] = self._session(arrays)
        session = self.shared.sessions[key]
        if isinstance(session, str):
            raise NotImplementedError(session)
        return session.run(None, arrays)

    @cached_property
    def _anonymous(self) -> bytes:
        """The operator and its opset without the names of the values."""
        node = NodeProto()
        node.CopyFrom(self.node)
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [name and f"x{i}" for i, name in enumerate(node.input)]
        node.output[:] = [name and f"y{i}" for i, name in enumerate(node.output)]
        opsets = [helper.make_opsetid(domain, v) for domain, v in self.opsets.items()]
        graph = helper.make_graph([node], "operator", [], [
            ValueInfoProto(name=name) for name in node.output if name
        ])  # fmt: skip
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        return model.SerializeToString(deterministic=True)

    def _session(self, arrays: Mapping[str, Array]) -> ort.InferenceSession | str:
        """A session, or why there is none.

        Not the exception itself: its traceback would keep every value of the run alive.
        """
        model = ModelProto.FromString(self._anonymous)
        model.graph.input.extend(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), None)
            for name, x in arrays.items()
        )
        options = ort.SessionOptions()
        options.log_severity_level = 4  # that a kernel is missing is an answer here, not an error
        options.intra_op_num_threads = 1  # a pool per session: its start costs more than it saves
        try:
            return ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001  the answer "no" is kept like a session
            return first_line(error)


def key_of(node: NodeProto) -> tuple[str, str]:
    """(domain, type), with the default domain as the empty string."""
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


def _widened(y: Any) -> Any:
    return widen_array(np.asarray(y)) if isinstance(y, np.ndarray | np.generic) else y


def _is_activation(y: Any) -> bool:
    return isinstance(y, np.ndarray) and y.dtype == np.float64 and y.ndim >= 2


def _narrowed(x: Any) -> Any:
    return x.astype(np.float32) if x is not None and x.dtype == np.float64 else x
