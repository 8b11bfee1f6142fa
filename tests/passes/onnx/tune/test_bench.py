"""onnxruntime as a bench: models of one convolution, what they compute, and what goes wrong."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from dwr_rewrite.lowerings import candidates
from dwr_rewrite.passes.onnx.provider import CPU, Provider
from dwr_rewrite.passes.onnx.tune import OnnxBench, answering, forms
from dwr_rewrite.passes.onnx.tune.answering import answer
from dwr_rewrite.passes.onnx.tune.forms import Layer
from dwr_rewrite.passes.onnx.tune.gate import difference
from dwr_rewrite.recipe import run as interpret
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.tuning import Question
from dwr_rewrite.workload import Workload

HOST = Provider(CPU)
SAME = ((1, 1), (1, 1))


def workload(channels=16, **fields) -> Workload:
    known = {"batch": 2, "layout": "nchw"}
    options = {key: fields.pop(key) for key in [*known, "tf32"] if key in fields}
    spec = {"kernel": (3, 3), "spatial": (9, 8), **fields}
    return Workload(ConvSpec(channels, **spec), **{**known, **options})


def question(workload: Workload) -> Question:
    return Question(workload, tuple(candidates(workload.spec)))


WORKLOADS = {
    "plain": workload(padding=SAME, bias=True),
    "channels_last": workload(padding=SAME, layout="channels_last"),
    "one axis, dilated": workload(kernel=(3,), spatial=(20,), padding=((2, 1),), dilation=(2,)),
    "three axes, in steps": workload(kernel=(3, 1, 2), spatial=(5, 6, 7), stride=(1, 2, 2)),
    "transposed": workload(12, multiplier=2, transposed=True, stride=(2, 2), padding=SAME,
                           output_padding=(1, 0)),
    "three axes, channels_last": workload(
        kernel=(2, 2, 2), spatial=(3, 4, 5), layout="channels_last", multiplier=3, bias=True),
    "float16": workload(padding=SAME, dtype="float16"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_form_is_the_convolution_of_the_workload(name, tmp_path):
    """Against numpy: each of several copies, which read inputs of their own."""
    asked = WORKLOADS[name]
    spec, last = asked.spec, asked.layout == "channels_last"
    layer = Layer.of(asked, cache_bytes=1)
    assert layer.count == forms.FEWEST
    unit = 2.0**-11 if spec.dtype == "float16" else 2.0**-24
    for form, recipe in candidates(spec).items():
        session = ort.InferenceSession(layer.model(form).SerializeToString(), providers=[CPU])
        found = session.run(None, layer.feeds)
        for pair in zip(layer.feeds.values(), found, strict=True):
            x, y = (np.moveaxis(array, -1, 1) if last else array for array in pair)
            assert (x.shape, y.shape) == (asked.input_shape, asked.output_shape)
            bias = None if layer.bias is None else layer.bias.astype(np.float64)
            right = interpret(recipe, x.astype(np.float64), layer.weight.astype(np.float64), bias)
            # All factors are 1 at most, so that a sum of n products is n at most.
            np.testing.assert_allclose(y, right, rtol=0, atol=2 * (spec.taps + 1) ** 2 * unit)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_form_passes_the_gate_and_is_timed(name, tmp_path):
    asked = question(WORKLOADS[name])
    found = answer(asked, HOST, 0.0, tmp_path)
    slow = {form for form, why in found.failures.items() if "in a first look" in why}
    assert set(found.failures) == slow
    assert set(found.timings) == set(asked.forms) - slow
    assert "keep" in found.timings
    assert {len(timing.samples) for timing in found.timings.values()} == {2}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_type_that_the_provider_does_not_convolve_is_a_failure(dtype, tmp_path):
    asked = question(workload(dtype=dtype))
    found = answer(asked, HOST, 0.0, tmp_path)
    assert found.timings == {}
    assert "does not run on CPUExecutionProvider" in found.failures["keep"]


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_form_that_computes_something_else_is_not_timed(layout, tmp_path, monkeypatch):
    """The twin: one form whose filters stand one column too far."""
    right = Layer.model

    def wrong(layer, form):
        model = right(layer, form)
        if form == "blocks:8":
            tensor = model.graph.initializer[0]
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.roll(array, 1, axis=1), "w"))
        return model

    monkeypatch.setattr(Layer, "model", wrong)
    found = answer(question(workload(layout=layout)), HOST, 0.0, tmp_path)
    assert "it computes something else" in found.failures["blocks:8"]
    assert "blocks:8" not in found.timings
    assert "keep" in found.timings


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize(("dtype", "tf32"), [("float32", False), ("float32", True),
                                             ("float16", False)])  # fmt: skip
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_the_gate_lets_roundings_pass_and_nothing_else(on_host, dtype, tf32, stride):
    """A sum of products whose factors were rounded passes; a filter that is off by a tap, a
    channel or a NaN does not."""
    asked = workload(padding=SAME, stride=stride, dtype=dtype, tf32=tf32)
    layer = Layer.of(asked, 0)
    recipe = candidates(asked.spec)["keep"]
    x, w = (a.astype(np.float64) for a in (layer.feeds["x0"], layer.weight))

    def compute(x, w):
        return interpret(recipe, x, w).astype(dtype)

    right = compute(x, w)
    unit = 2.0**-11 if tf32 and not on_host else 0.0
    rng = np.random.default_rng(0)
    rounded = compute(*(a * (1 + unit * rng.uniform(-1, 1, a.shape)) for a in (x, w)))
    assert difference(layer, right, rounded, on_host) == ""
    wrong = {
        "a tap": compute(x, np.roll(w, 1, axis=-1)),
        "a channel": np.roll(right, 1, axis=1),
        "an image": right[::-1],
        "a NaN": np.where(np.arange(right.size).reshape(right.shape) == 5, np.nan, right),
    }
    assert {n: bool(difference(layer, right, y, on_host)) for n, y in wrong.items()} == (
        dict.fromkeys(wrong, True)
    )
    assert "its output is [2, 16, 1, 1]" in difference(layer, right, right[..., :1, :1], on_host)


def test_what_is_hopeless_does_not_use_up_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "HOPELESS", 0.0)
    found = answer(question(workload()), HOST, 0.0, tmp_path)
    assert found.timings == {}
    assert all("in a first look" in why for why in found.failures.values())


@pytest.mark.parametrize(
    ("cache_bytes", "channels", "count"),
    [(0, 16, 1), (1, 16, forms.FEWEST), (1 << 17, 16, 16), (1 << 30, 16, forms.MOST),
     (1, 1 << 17, 2), (1, 1 << 19, 1)],
)  # fmt: skip
def test_so_many_copies_that_the_cache_does_not_serve_them(cache_bytes, channels, count):
    """2 * 8 * 8 * 2 elements of float32 for each channel, read and written."""
    asked = workload(channels, kernel=(1, 2), spatial=(8, 8), padding=((0, 0), (1, 0)))
    assert asked.elements * asked.itemsize == channels * 1024
    assert forms._count(asked, cache_bytes) == count


# ------------------------------------------------------------------------------- child processes

PATCHED = """
import os, signal, time
from pathlib import Path
from dwr_rewrite.passes.onnx.child import serve
from dwr_rewrite.passes.onnx.tune import answering
right = answering.answer
def answer(question, *rest):
    if question.workload.spec.channels == 12:
        os.kill(os.getpid(), signal.SIGSEGV)
    if question.workload.spec.channels == 14:
        time.sleep(60)
    found = right(question, *rest)
    found.state["pid"] = str(os.getpid())
    return found
answering.answer = answer
serve(lambda job: job())
"""


def bench(**fields) -> OnnxBench:
    return OnnxBench("cpu", **{"seconds": 0.0, **fields})


def test_a_crash_or_a_hang_is_the_answer_to_one_question(monkeypatch):
    monkeypatch.setattr("dwr_rewrite.passes.onnx.tune.bench.JOBS", ["-c", PATCHED])
    asked = [question(workload(channels)) for channels in (8, 12, 16, 14, 18)]
    found = list(bench(timeout=5.0).measure(asked))
    assert [answer.workload for answer in found] == [q.workload for q in asked]
    assert [bool(answer.timings) for answer in found] == [True, False, True, False, True]
    assert "SIGSEGV while measuring forward of 12 channels" in found[1].failures["keep"]
    assert "took longer than 5 s" in found[3].failures["keep"]
    assert set(found[1].failures) == set(asked[1].forms)


def test_answers_come_one_by_one_and_closing_ends_the_child(monkeypatch):
    monkeypatch.setattr("dwr_rewrite.passes.onnx.tune.bench.JOBS", ["-c", PATCHED])
    answers = bench().measure([question(workload(8)), question(workload(14))])
    pid = int(next(answers).state["pid"])
    os.kill(pid, 0)  # it hangs at the second
    answers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_nothing_is_started_for_no_question():
    assert list(OnnxBench("abacus").measure([])) == []
