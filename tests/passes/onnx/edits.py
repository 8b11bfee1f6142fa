"""Finds and changes parts of small models, for the tests that a change must not escape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from dwr_rewrite.equivalence.evidence import Lemma, Proof
from dwr_rewrite.passes.onnx.metadata import read
from dwr_rewrite.passes.onnx.proof import prove

SHARED_MODEL = (
    Path(__file__).parents[4] / "shared" / "models" / "ultra-light-face" / "version-RFB-320.onnx"
)
WEIGHTS = ["precomputed", "linked"]


def proof(model: ModelProto, other: ModelProto) -> Proof:
    found = prove(model, other)
    assert found is not None
    return found


def the_lemma(model: ModelProto, other: ModelProto) -> Lemma:
    (lemma,) = proof(model, other).lemmas
    return lemma


def stamped(model: ModelProto) -> NodeProto:
    """The first rewritten convolution."""
    return next(node for node in model.graph.node if "form" in read(node))


def initializer(model: ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def packed(model: ModelProto) -> TensorProto:
    """The weight of the first rewritten convolution."""
    return initializer(model, stamped(model).input[1])


def changed_array(tensor: TensorProto, change: Callable[[np.ndarray], object]) -> None:
    """Changes a copy of a tensor's array and stores it."""
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
