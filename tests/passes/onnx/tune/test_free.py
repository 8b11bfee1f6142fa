"""The settings that need no rewrite: which are tried, which is used, and their measurement."""

from __future__ import annotations

import onnx
import pytest

from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.provider import CPU, CUDA, TENSORRT, Provider
from dwr_rewrite.passes.onnx.tune import free
from dwr_rewrite.passes.onnx.tune.free import Setting, best, measure_free, possible
from dwr_rewrite.timing import FreeSetting, Speedup
from models.handmade import conv_model

HEURISTIC, NHWC = "cudnn_conv_algo_search=HEURISTIC", "prefer_nhwc=1"
TF32, NO_TF32, GRAPH = "use_tf32=1", "use_tf32=0", "enable_cuda_graph=1"


@pytest.mark.parametrize(
    ("provider", "names"),
    [
        (Provider(CPU), []),
        (Provider(CUDA), [HEURISTIC, NHWC, NO_TF32, GRAPH]),
        (Provider(CUDA, {"use_tf32": "0"}), [HEURISTIC, NHWC, TF32, GRAPH]),
        (Provider(CUDA, {"prefer_nhwc": "1", "cudnn_conv_algo_search": "DEFAULT"}),
         ["cudnn_conv_algo_search=EXHAUSTIVE", HEURISTIC, NO_TF32, GRAPH]),
        (Provider(TENSORRT), ["trt_fp16_enable=1"]),
        (Provider("OpenVINOExecutionProvider"), []),
    ],
)  # fmt: skip
def test_what_a_provider_does_already_is_not_tried(provider, names):
    assert [setting.name for setting in possible(provider)] == names


def test_settings_that_round_more_are_marked():
    marked = [s.name for settings in free.POSSIBLE.values() for s in settings if not s.rounds_alike]
    assert marked == [TF32, "trt_fp16_enable=1"]


def told(name: str, low: float, median: float, alike: bool = True) -> FreeSetting:
    return FreeSetting(name, "", alike, Speedup(median, low, 2 * median))


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ([], ""),
        ([told(NHWC, 1.5, 1.6), told(GRAPH, 1.1, 1.7)], GRAPH),
        ([told(NHWC, 1.01, 1.6), told(HEURISTIC, 1.1, 1.2)], HEURISTIC),
        ([told(NHWC, 0.9, 1.6)], ""),
        ([told(TF32, 2.0, 3.0, alike=False), told(NHWC, 1.1, 1.2)], NHWC),
        ([FreeSetting(NHWC, "", True, None, "it crashed")], ""),
    ],
)
def test_the_best_of_those_that_round_alike_is_used(found, name):
    provider = Provider(CUDA, {"use_tf32": "0"})
    option, _, value = name.partition("=")
    wanted = {"use_tf32": "0", option: value} if name else {"use_tf32": "0"}
    assert best(found, provider) == (name, Provider(CUDA, wanted))


@pytest.fixture
def model(tmp_path):
    onnx.save(conv_model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


SHIM = """
from dwr_rewrite.passes.onnx import loading
from dwr_rewrite.passes.onnx.child import serve
from dwr_rewrite.passes.onnx.provider import CPU, Provider
from dwr_rewrite.passes.onnx.tune import free
free.SECONDS = 0.0
free.POSSIBLE = {CPU: (free.Setting("fast", "1"), free.Setting("broken", "1"))}
free.DEFAULTS = {CPU: {"fast": "0", "broken": "0"}}
right = loading.Loader.load
def load(self, role, path, feeds):
    if "broken" in self.provider.options:
        raise loading.DwrError("the reference does not run")
    return right(loading.Loader(Provider(CPU), self.settings), role, path, feeds)
loading.Loader.load = load
serve(lambda job: job())
"""


def with_settings(monkeypatch, command):
    """A CPU with two settings, one of which does not run."""
    monkeypatch.setattr(free, "JOBS", ["-c", command])
    monkeypatch.setattr(free, "POSSIBLE", {CPU: (Setting("fast", "1"), Setting("broken", "1"))})
    monkeypatch.setattr(free, "DEFAULTS", {CPU: {"fast": "0", "broken": "0"}})


def test_settings_are_timed_side_by_side_and_a_failure_is_told(model, monkeypatch):
    with_settings(monkeypatch, SHIM)
    fast, broken = measure_free(model, Settings(), Provider(CPU), lambda what: None)
    assert (fast.name, broken.name) == ("fast=1", "broken=1")
    assert fast.speedup.low <= fast.speedup.median <= fast.speedup.high
    assert "--provider-option fast=1" in fast.how
    assert (broken.speedup, broken.failure) == (None, "the reference does not run")


def test_a_crash_is_told_as_the_failure_of_all(model, monkeypatch):
    with_settings(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    found = measure_free(model, Settings(), Provider(CPU), lambda what: None)
    assert [setting.speedup for setting in found] == [None, None]
    assert all("ended with SIGSEGV" in setting.failure for setting in found)


def test_a_model_that_does_not_run_at_all_is_an_error(tmp_path, monkeypatch):
    broken = conv_model()
    broken.graph.node[0].op_type = "Convolution"
    (tmp_path / "m.onnx").write_bytes(broken.SerializeToString())
    with_settings(monkeypatch, SHIM)
    with pytest.raises(DwrError, match="the reference does not run on CPUExecutionProvider"):
        measure_free(tmp_path / "m.onnx", Settings(), Provider(CPU), lambda what: None)


def test_a_provider_without_settings_starts_nothing(model, monkeypatch):
    monkeypatch.setattr(free, "JOBS", ["-c", "raise SystemExit(3)"])
    assert measure_free(model, Settings(), Provider(CPU), lambda what: None) == ()
