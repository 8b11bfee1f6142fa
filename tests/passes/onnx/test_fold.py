"""Chains of constants give the array that onnxruntime computes for them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from dwr_rewrite.errors import Rejection
from dwr_rewrite.passes.onnx import fold as module
from dwr_rewrite.passes.onnx.fold import Array, fold
from dwr_rewrite.passes.onnx.graphs import scopes
from tests.passes.onnx.helpers import parse, run

CHAINS = {
    "identity matrix": "s = Constant <value = int32[2,3] {0,0,0,0,0,0}> () y = EyeLike (s)",
    "shifted, of another type":
        "s = Constant <value = int32[2,2] {0,0,0,0}> () y = EyeLike <k = -1, dtype = 1> (s)",
    "selection": """i = Constant <value = int32[2,2] {0,0,0,0}> () e = EyeLike (i)
        b = Cast <to = 9> (e) x = Constant <value = float[2,1] {1.5, -2.0}> ()
        z = Constant <value = float {0.0}> () y = Where (b, x, z)""",
}  # fmt: skip


def folded(text: str) -> Array | Rejection:
    (scope,) = scopes(parse(MODEL.format(text)))
    result: gs.Tensor = scope.view.nodes[-1].outputs[0]
    return fold(result, scope)


MODEL = '<ir_version: 8, opset_import: ["" : 17]> g () => (y) {{ {} }}'


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_folded_as_onnxruntime_computes_it(name):
    found = folded(CHAINS[name])
    (expected,) = run(parse(MODEL.format(CHAINS[name])), {}).values()
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes())


def test_a_selection_that_grows_too_large_is_not_folded(monkeypatch):
    monkeypatch.setattr(module, "FOLD_LIMIT", 3)
    found = folded(CHAINS["selection"])
    assert isinstance(found, Rejection)
    assert "(2, 2) has more than 3 elements" in found.reason
