"""What the tests of the ONNX pass share: rewriting a copy, feeding and comparing models."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from dwr_rewrite.equivalence.tolerance import UNIT_ROUNDOFF
from dwr_rewrite.passes.onnx.fold import dtype_name
from dwr_rewrite.passes.onnx.rewrite import Options, rewrite
from dwr_rewrite.report import SiteReport


class ConvTranspose(OpRun):
    """By torch in double: onnx.reference 1.23 is wrong for more than one group."""

    def _run(self, x, w, b=None, group=1, strides=None, pads=None, **attributes):
        rank = x.ndim - 2
        assert not any(attributes.get(name) for name in ("output_shape", "output_padding"))
        tensors = [torch.tensor(np.asarray(a, np.float64)) for a in (x, w)]
        convolve = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[
            rank - 1
        ]
        y = convolve(*tensors, stride=tuple(strides or (1,) * rank), groups=group).numpy()
        for axis, (before, after) in enumerate(zip(pads[:rank], pads[rank:], strict=True), 2) \
                if pads else ():  # fmt: skip
            y = y[(slice(None),) * axis + (slice(before, y.shape[axis] - after),)]
        bias = 0 if b is None else np.asarray(b, np.float64).reshape(-1, *(1,) * rank)
        return ((y + bias).astype(x.dtype),)


def parse(text: str) -> ModelProto:
    return onnx.parser.parse_model(text)


def rewritten(model: ModelProto, **options) -> tuple[ModelProto, list[SiteReport]]:
    """A rewritten copy that onnx.checker accepts, and the report; the argument stays as it is."""
    before = model.SerializeToString(deterministic=True)
    copy = ModelProto()
    copy.CopyFrom(model)
    sites = rewrite(copy, Options(**{"policy": "blocks:32", **options}))
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(copy, full_check=True)
    return copy, sites


def forms(sites: list[SiteReport]) -> dict[str, str]:
    return {site.name: site.form for site in sites}


def reasons(sites: list[SiteReport]) -> dict[str, str]:
    """Name -> rejection code of what was left alone."""
    return {site.name: site.reason.code for site in sites if site.reason is not None}


def feeds_for(model: ModelProto, seed: int = 0, **lengths: int) -> dict[str, np.ndarray]:
    """Seeded inputs in small steps around zero; symbols take their length from ``lengths``."""
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        tensor = value.type.tensor_type
        shape = [d.dim_value or lengths.get(d.dim_param, 2) for d in tensor.shape.dim]
        feeds[value.name] = rng.standard_normal(shape).astype(dtype_name(tensor.elem_type))
    return feeds


def run(model: ModelProto, feeds, optimize: bool = True) -> dict[str, np.ndarray]:
    """Outputs in onnxruntime, or in onnx.reference where onnxruntime has no kernel for the type."""
    names = [output.name for output in model.graph.output]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except (errors.NotImplemented, errors.Fail) as error:
        # No kernel for the element type, or a newer IR version or opset than onnxruntime knows.
        if not re.search("NOT_IMPLEMENTED|Unsupported model IR|opset", str(error)):
            raise
        results = ReferenceEvaluator(model, new_ops=[ConvTranspose]).run(None, feeds)
    else:
        results = session.run(names, feeds)
    return dict(zip(names, results, strict=True))


def assert_equal(original: ModelProto, other: ModelProto, feeds, taps: int = 64, depth: int = 1):
    """Both models give the same outputs, but for rounding.

    Two orders of one sum of n products differ by at most 2 gamma_n (|w| * |x|), and weights and
    inputs here are of order one, so (|w| * |x|) <= n max|w| max|x| <= 16 n. ``depth`` such sums in
    a row add up their bounds, as no layer in these models magnifies what it is given.
    """
    before, after = run(original, feeds), run(other, feeds)
    assert before.keys() == after.keys()
    for name, expected in before.items():
        got = after[name]
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        u = UNIT_ROUNDOFF.get(expected.dtype.name, 0.0)
        error = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
        assert error <= depth * 2 * (taps + 2) * u * 16 * min(taps, 9), name
        assert np.isfinite(expected.astype(np.float64)).all()
