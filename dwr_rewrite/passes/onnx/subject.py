"""An ONNX file as something that can be checked: onnxruntime on the CPU, and float64."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, ValueInfoProto

from dwr_rewrite.equivalence.sample import tensors
from dwr_rewrite.equivalence.samples import Arrays, Declared
from dwr_rewrite.equivalence.subject import Evaluation, Observe
from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.float64 import Float64Evaluator
from dwr_rewrite.passes.onnx.fold import dtype_name, to_array
from dwr_rewrite.passes.onnx.types import declared, infer

ENGINE = "onnxruntime CPU"

TAP_BYTES = 256 << 20
"""What the tapped values of one run may take; more of them are taken in several runs."""

SMALL_BYTES = 1 << 16
"""Tensors up to which a model is serialized with them inside."""

NUMPY_TYPES = ("float32", "float64", "float16", "int8", "uint8", "int32", "int64")
"""Element types that onnxruntime takes from numpy."""

UNKNOWN_BYTES = 16 << 20
"""What a value of unknown shape is taken for."""


class OnnxSubject:
    """A model file.

    Args:
        path: the file.
        model: what is in it; not kept.
        rounding: how its operators round.
        sites: values of the convolutions that ``exact`` tells of.
        refusal: why it must not be run; empty otherwise.

    Raises:
        InputError: one of its inputs is no tensor.
    """

    def __init__(
        self,
        path: Path,
        model: ModelProto,
        rounding: Rounding,
        sites: Collection[str] = (),
        refusal: str = "",
    ) -> None:
        """Loads nothing that runs."""
        self.path, self.rounding, self.sites, self.refusal = path, rounding, sites, refusal
        self.engine = ENGINE
        self.declared: Mapping[str, Declared] = dict(declared(model))
        self.outputs: Sequence[str] = [value.name for value in model.graph.output]
        self._session: ort.InferenceSession | None = None
        self._evaluator: Float64Evaluator | None = None

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs that are tensors, computed by onnxruntime.

        Raises:
            Exception: whatever onnxruntime raises when it cannot load or run the model.
        """
        self._check()
        results = self.load().run(self.outputs, feeds)
        return tensors(dict(zip(self.outputs, results, strict=True)))

    def load(self) -> ort.InferenceSession:
        """The session, loaded once.

        Raises:
            Exception: whatever onnxruntime raises when it cannot load the model.
        """
        if self._session is None:
            self._session = _load(self.path)
        return self._session

    def exact(
        self,
        feeds: Arrays,
        perturb: np.random.Generator | None = None,
        observe: Observe | None = None,
    ) -> Evaluation:
        """The outputs in float64, see :class:`Float64Evaluator`."""
        self._check()
        if self._evaluator is None:
            self._evaluator = Float64Evaluator(self.path, self.rounding, self.sites)
        return self._evaluator.run(feeds, perturb, observe)

    def tap(self, feeds: Arrays, values: Sequence[str], observe: Observe) -> None:
        """Runs copies of the model whose further outputs are those of its own nodes' values.

        An optimizer does not fuse across an output, so these copies may round differently from the
        model that :meth:`run` uses. Values in bodies and functions cannot be outputs and are left
        out.
        """
        model = onnx.load(self.path)
        own = {name for node in model.graph.node for name in node.output}
        groups = list(_groups([v for v in values if v in own], _sizes(model, feeds)))
        stored = _take_stored(model)
        model = ModelProto.FromString(model.SerializeToString())  # what was taken is freed only so
        for group in groups:
            session: Any = _tapped(model, group, stored)
            for value, array in zip(group, session.run(group, feeds), strict=True):
                observe(value, array)

    def release(self) -> None:
        """Lets go of the session and of the evaluation."""
        self._session = self._evaluator = None
        gc.collect()  # onnx.reference holds its nodes in cycles

    def _check(self) -> None:
        if self.refusal:
            raise DwrError(self.refusal)


def _load(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _take_stored(model: ModelProto) -> Arrays:
    """Takes the large tensors out of a model: sessions read them from memory, which saves a file.

    Element types that numpy has not stay in the model.
    """
    taken: Arrays = {}
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        if size > SMALL_BYTES and dtype_name(tensor.data_type) in NUMPY_TYPES:
            taken[tensor.name] = to_array(tensor)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="memory")
    return taken


def _tapped(model: ModelProto, values: Sequence[str], stored: Arrays) -> ort.InferenceSession:
    """A session whose outputs are the model's and these values."""
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    count, present = len(model.graph.output), {value.name for value in model.graph.output}
    model.graph.output.extend(
        known.get(value, ValueInfoProto(name=value)) for value in values if value not in present
    )
    options = ort.SessionOptions()
    options.add_external_initializers(
        list(stored), [ort.OrtValue.ortvalue_from_numpy(array) for array in stored.values()]
    )
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    del model.graph.output[count:]
    return session


def _sizes(model: ModelProto, feeds: Arrays) -> dict[str, int]:
    """Bytes of the values whose shapes follow from those of the inputs."""
    declared = [ValueInfoProto.FromString(v.SerializeToString()) for v in model.graph.input]
    for value in model.graph.input:
        array = feeds.get(value.name)
        shape = value.type.tensor_type.shape
        if array is not None and len(shape.dim) == array.ndim:
            for dim, length in zip(shape.dim, array.shape, strict=True):
                dim.dim_value = length
    types = infer(model)
    del model.graph.input[:]
    model.graph.input.extend(declared)
    return {
        name: 8 * prod(n or 1 for n in shape)
        for name, (_, shape) in types.items()
        if None not in shape
    }


def _groups(values: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Values in runs of at most ``TAP_BYTES``, at least one in each."""
    group, total = list[str](), 0
    for value in values:
        size = sizes.get(value, UNKNOWN_BYTES)
        if group and total + size > TAP_BYTES:
            yield group
            group, total = [], 0
        group.append(value)
        total += size
    if group:
        yield group
