"""Timing two model files: providers, buffers, what a result says, and what goes wrong."""

from __future__ import annotations

import subprocess

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper

from dwr_rewrite import nvidia
from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx import providers
from dwr_rewrite.passes.onnx.bound import MOST_COPIES, Bound, copies, free_lengths, left_to_cpu
from dwr_rewrite.passes.onnx.device import CACHE_BYTES, cache_bytes, describe, look, provider_of
from dwr_rewrite.passes.onnx.provider import CPU, CUDA, DIRECTML, TENSORRT, Provider
from dwr_rewrite.passes.onnx.providers import choose
from dwr_rewrite.passes.onnx.runtime import RuntimeResult, time_models
from dwr_rewrite.passes.onnx.runtime_worker import joules_of
from dwr_rewrite.report import plain
from dwr_rewrite.timing import Energy, Paired, Timing
from dwr_rewrite.tuning import Device
from models.handmade import chain, conv_model
from tests.passes.onnx.helpers import feeds_for, parse, run

HOST = Provider(CPU, {})
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'

ABSENT = [name for name in ort.get_available_providers() if providers.refusal(Provider(name, {}))]
"""Providers for which this onnxruntime was built, but which do not load on this machine."""


def save(path, model: ModelProto):
    onnx.save(model, path)
    return path


def time_them(reference, candidate, **options) -> RuntimeResult:
    settings = options.pop("settings", Settings())
    return time_models(reference, candidate, settings, **{"budget": 0.0, **options})


# ----------------------------------------------------------------------------------- providers


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_a_provider_has_a_short_name(name):
    assert choose(name, {}) == HOST


def test_a_provider_that_is_not_built_in_is_refused_with_those_that_are():
    with pytest.raises(DwrError, match=r"^provider 'abacus': this onnxruntime has .*\bcpu\b"):
        choose("abacus", {})


@pytest.mark.parametrize("name", ABSENT)
def test_a_provider_that_does_not_load_is_refused_with_the_reason(name):
    with pytest.raises(DwrError, match=f"^{name} does not load here: .*(lib|dll)") as failure:
        choose(name, {})
    assert "\n" not in str(failure.value)


def test_options_for_a_provider_without_any_are_refused():
    with pytest.raises(DwrError, match="takes no options; found use_tf32"):
        choose("cpu", {"use_tf32": "0"})


def test_a_device_has_a_number():
    assert Provider("CUDAExecutionProvider", {"device_id": "3"}).device_id == 3
    with pytest.raises(DwrError, match="device_id='first': a number expected"):
        _ = Provider("CUDAExecutionProvider", {"device_id": "first"}).device_id


@pytest.mark.parametrize(
    ("name", "memory"),
    [(CPU, "cpu"), ("CUDAExecutionProvider", "cuda"), ("TensorrtExecutionProvider", "cuda"),
     ("DmlExecutionProvider", "dml"), ("OpenVINOExecutionProvider", "cpu")],
)  # fmt: skip
def test_tensors_lie_where_the_provider_wants_them(name, memory):
    assert Provider(name, {}).memory == memory


def test_what_cxx_code_writes_to_standard_error_is_kept_from_it(capfd):
    with providers._standard_error() as written:
        subprocess.run(["sh", "-c", "echo to be caught >&2"], check=True)
    subprocess.run(["sh", "-c", "echo to be seen >&2"], check=True)
    assert written == ["to be caught\n"]
    assert capfd.readouterr().err == "to be seen\n"


# ------------------------------------------------------------------------------------- buffers

MODELS = {
    "a convolution": conv_model(),
    "two inputs, two outputs": parse(f"""{HEAD} g (float[2,3] a, int64[2,3] b)
        => (float[2,3] y, int64[2,3] z) {{ y = Relu (a) z = Add (b, b) }}"""),
    "a sequence": parse(f"""{HEAD} g (float[2,3] a) => (float[2,3] y, seq(float[2,3]) s)
        {{ y = Relu (a) s = SequenceConstruct (a, y) }}"""),
    "a text": parse(f"""{HEAD} g (float[2] a) => (string[2] y, float[2] z)
        {{ y = Cast <to = 8> (a) z = Relu (a) }}"""),
    "as many values as are not zero": parse(
        f"{HEAD} g (float[2,3] a) => (int64[2,n] y) {{ b = Relu (a) y = NonZero (b) }}"
    ),
    "a scalar": parse(f"{HEAD} g (float a) => (float y) {{ y = Relu (a) }}"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_every_copy_computes_what_the_model_does(name, cache_bytes, tmp_path):
    model, feeds = MODELS[name], feeds_for(MODELS[name])
    expected = run(model, feeds)
    bound = Bound(save(tmp_path / "m.onnx", model), HOST, feeds, cache_bytes)
    seen, graphs = set(), set()
    for _ in range(copies(feeds, cache_bytes) + 1):
        binding, options = next(bound._slots)
        seen.add(binding)
        graphs.add(options.get_run_config_entry("gpu_graph_id"))
        bound.session.run_with_iobinding(binding)
        for value, wanted in zip(binding.get_outputs(), expected.values(), strict=True):
            np.testing.assert_array_equal(value.numpy() if value.is_tensor() else wanted, wanted)
    assert len(seen) == len(graphs) == (1 if cache_bytes == 0 else MOST_COPIES)
    assert not graphs & {"-1", "0"}  # no graph, and one that is reserved


def test_runs_write_into_the_buffers_that_are_there(tmp_path):
    """A captured CUDA graph writes to the same addresses whatever happens."""
    model = conv_model()
    bound = Bound(save(tmp_path / "m.onnx", model), HOST, feeds_for(model), 0)
    binding, _ = next(bound._slots)
    addresses = set()
    for _ in range(3):
        bound()
        addresses.add(binding.get_outputs()[0].data_ptr())
    assert len(addresses) == 1


def test_the_threads_of_an_idle_session_rest(tmp_path):
    model = conv_model()
    bound = Bound(save(tmp_path / "m.onnx", model), HOST, feeds_for(model), 0)
    options = bound.session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_types_that_numpy_has_not_are_fed(tmp_path):
    ends = [helper.make_tensor_value_info(n, TensorProto.BFLOAT16, [2, 3]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": np.arange(6.0).reshape(2, 3).astype(ml_dtypes.bfloat16)}
    bound = Bound(save(tmp_path / "m.onnx", model), HOST, feeds, 0)
    bound()
    (value,) = next(bound._slots)[0].get_outputs()
    assert value.data_type() == "tensor(bfloat16)"
    assert value.shape() == [2, 3]


@pytest.mark.parametrize(
    ("nbytes", "cache_bytes", "count"),
    [(100, 0, 1), (100, 50, 1), (100, 51, 2), (100, 150, 3), (100, 1 << 20, MOST_COPIES),
     (0, 1 << 20, MOST_COPIES), (0, 0, 1)],
)  # fmt: skip
def test_so_many_copies_that_the_cache_holds_only_half(nbytes, cache_bytes, count):
    assert copies({"x": np.zeros(nbytes, np.uint8)}, cache_bytes) == count


@pytest.mark.parametrize(
    ("inputs", "shapes", "lengths"),
    [
        ("float[N,3,H,W] x", {"x": (2, 3, 8, 9)}, {"N": 2, "H": 8, "W": 9}),
        ("float[2,3] x", {"x": (2, 3)}, {}),
        ("float[N,?] x", {"x": (2, 3)}, {"N": 2}),
        ("float[N,S] x, float[N,S] y", {"x": (2, 3), "y": (2, 4)}, {"N": 2}),
    ],
)
def test_named_lengths_are_fixed_unless_they_contradict_each_other(inputs, shapes, lengths):
    model = parse(f"{HEAD} g ({inputs}) => (float[a,b] z) {{ z = Relu (x) }}")
    feeds = {name: np.zeros(shape, "f4") for name, shape in shapes.items()}
    assert free_lengths(model, feeds) == lengths


SHAPES = parse(f"""{HEAD} g (float[N,8,H] x) => (float[a,b,c] y) {{
    k = Constant <value = int64[3] {{2, 1, 1}}> () s = Shape (x) r = Min (s, k) y = Tile (x, r)
    }}""")


def test_what_computes_shapes_is_folded_once_the_lengths_are_fixed(tmp_path):
    """CUDA leaves such operators to the CPU, which a strict session refuses."""
    path = save(tmp_path / "m.onnx", SHAPES)
    assert left_to_cpu(path, HOST, {}) == "Min, Shape, Tile"
    assert left_to_cpu(path, HOST, {"N": 2, "H": 4}) == "Tile"


@pytest.mark.skipif("CUDAExecutionProvider" not in ABSENT, reason="CUDA loads, or is not built in")
def test_a_time_on_the_cpu_is_not_passed_off_as_the_devices(tmp_path):
    model = conv_model()
    path = save(tmp_path / "m.onnx", model)
    with pytest.raises(DwrError, match=r"leaves to the CPU \(Conv\)") as failure:
        Bound(path, Provider("CUDAExecutionProvider", {}), feeds_for(model), 0)
    assert "has operators that CUDAExecutionProvider" in str(failure.value)


# ------------------------------------------------------------------------------------- results


def test_a_result_says_what_was_measured_and_where(tmp_path):
    path = save(tmp_path / "m.onnx", chain(20))
    steps: list[str] = []
    found = time_them(path, path, provider="cpu", progress=steps.append)
    assert (found.pair.rounds, found.provider, found.device.target) == (1, HOST, True)
    assert found.shapes == {"x": (2, 16, 16, 16)}
    assert found.device.facts["onnxruntime"] == ort.__version__
    assert found.runtime.facts == found.device.facts
    assert steps[-1] == "timing both models"
    document = plain(found.runtime)
    assert document["device"] == f"CPU ({CPU})"
    assert document["measurements"][0]["name"] == "inference, x 2x16x16x16"


@pytest.mark.skipif(
    any(p in ort.get_available_providers() and p not in ABSENT for p in providers.PREFERRED),
    reason="there is a GPU",
)
def test_a_cpu_that_nobody_asked_for_is_not_the_target(tmp_path):
    path = save(tmp_path / "m.onnx", chain(3))
    found = time_them(path, path)
    assert (found.provider, found.device.target) == (HOST, False)
    assert found.runtime.device.endswith("not the target")


def test_options_stand_beside_the_device():
    pair = Paired(Timing((1.0, 1.0)), Timing((1.0, 1.0)))
    device = Device("a GPU", "P", {"driver": "580"})
    energy = Energy(1.0, 2.0, "by hand")
    found = RuntimeResult(
        pair, device, Provider("P", {"use_tf32": "0"}), {"x": (1, 3), "s": ()},
        {"SM clock": "1980 MHz"}, energy,
    )  # fmt: skip
    assert found.runtime.facts == {"driver": "580", "SM clock": "1980 MHz"}
    assert found.runtime.energy == energy
    assert found.runtime.device == "a GPU (P, use_tf32=0)"
    assert found.runtime.measurements[0].name == "inference, x 1x3, s scalar"


SHAPED = [
    (Settings(shapes={"x": (5, 16, 16, 16)}), (5, 16, 16, 16)),
    (Settings(given={"a": {"x": np.zeros((3, 16, 16, 16), "f4")}}), (3, 16, 16, 16)),
]


@pytest.mark.parametrize(("settings", "shape"), SHAPED, ids=["shape", "data"])
def test_the_wanted_shape_and_real_data_are_used(settings, shape, tmp_path):
    path = save(tmp_path / "m.onnx", chain(3))
    assert time_them(path, path, provider="cpu", settings=settings).shapes == {"x": shape}


def test_lengths_are_tried_until_the_reference_runs(tmp_path):
    model = parse(f"""{HEAD} g (float[N,8,H] x) => (float[a,b,c] y) {{
        s = Constant <value = int64[3] {{0, 2, 128}}> () y = Reshape (x, s) }}""")
    path = save(tmp_path / "m.onnx", model)
    assert time_them(path, path, provider="cpu").shapes == {"x": (2, 8, 32)}


# ---------------------------------------------------------------------------------- what fails


def broken(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.node[0].op_type = "Convolution"
    return copy


STATIC = parse(f"{HEAD} g (float[2,3] x, float[4,5] z) => (float[a,b] y) {{ y = Add (x, z) }}")
FAILS = [
    (chain(3), broken(chain(3)), {}, "^the candidate does not run on CPUExecutionProvider: "),
    (broken(chain(3)), chain(3), {}, "the reference does not run on CPUExecutionProvider: "),
    (chain(3), chain(3, channels=8), {}, "^the candidate .*invalid dimensions for input: x"),
    (chain(3, channels=8), chain(3), {"settings": Settings(shapes={"x": (1, 9, 16, 16)})},
     r"--shape x:1x9x16x16 does not fit the input, which is \?x8x16x16"),
    (STATIC, chain(3), {}, "^the reference does not run .*Add"),
    (chain(3), chain(3), {"provider": "abacus"}, "this onnxruntime has"),
    (chain(3), chain(3), {"settings": Settings(shapes={"z": (1,)})}, "no input 'z'"),
    (chain(3), chain(3), {"settings": Settings(timeout=0.01)}, "took longer than .*--timeout"),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "candidate", "options", "message"), FAILS)
def test_a_failure_is_a_sentence(reference, candidate, options, message, tmp_path):
    paths = save(tmp_path / "a.onnx", reference), save(tmp_path / "b.onnx", candidate)
    with pytest.raises(DwrError, match=message):
        time_them(*paths, **{"provider": "cpu", **options})


def test_a_crash_is_a_sentence(tmp_path, monkeypatch):
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr("dwr_rewrite.passes.onnx.runtime.WORKER", ["-c", crash])
    path = save(tmp_path / "m.onnx", chain(3))
    with pytest.raises(DwrError, match=r"ended with SIGSEGV while starting: no time is known$"):
        time_them(path, path)


# --------------------------------------------------------------------------------- the device


def test_the_device_of_a_provider_is_told_with_all_that_times_depend_on():
    found = look("cpu", {})
    assert found.provider == HOST
    assert (found.device.name, found.device.engine, found.device.target) == ("CPU", CPU, True)
    assert {"onnxruntime", "onnxruntime build", "processor", "threads"} == set(found.device.facts)


def test_a_device_that_does_not_answer_is_a_sentence(monkeypatch):
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr("dwr_rewrite.passes.onnx.device.JOBS", ["-c", crash])
    with pytest.raises(DwrError, match="the process that looked for a GPU ended with SIGSEGV"):
        look(None, {})


ABACUS = nvidia.Gpu("NVIDIA Abacus", 50 << 20, "13.2")


@pytest.fixture
def abacus(monkeypatch):
    """The GPU 1 of this machine."""
    monkeypatch.setattr(nvidia, "gpu", lambda index: ABACUS if index == 1 else None)
    monkeypatch.setattr(nvidia, "driver_version", lambda: "580.82")
    monkeypatch.setattr(nvidia, "cudnn_version", lambda: "9.13.5")


@pytest.mark.usefixtures("abacus")
def test_the_device_cache_and_versions_are_those_of_the_gpu():
    provider = Provider(CUDA, {"device_id": "1", "use_tf32": "0"})
    device = describe(provider, asked=False)
    assert (device.name, device.engine, device.target) == ("NVIDIA Abacus", CUDA, True)
    told = {"driver": "580.82", "CUDA driver": "13.2", "cuDNN": "9.13.5", "option use_tf32": "0"}
    assert told.items() <= device.facts.items()
    # Which of several equal devices it was is no fact.
    assert provider_of(device) == Provider(CUDA, {"use_tf32": "0"})
    assert cache_bytes(provider) == 50 << 20
    directml = Provider(DIRECTML, {"device_id": "1"})
    assert (describe(directml, False).name, cache_bytes(directml)) == ("device 1", CACHE_BYTES)
    assert (describe(HOST, False).target, cache_bytes(HOST)) == (False, 0)


@pytest.mark.parametrize(
    ("provider", "tf32", "layout"),
    [
        (HOST, False, "nchw"),
        (Provider(CUDA), True, "nchw"),
        (Provider(CUDA, {"use_tf32": "0"}), False, "nchw"),
        (Provider(CUDA, {"use_tf32": "False", "prefer_nhwc": "1"}), False, "channels_last"),
        (Provider(CUDA, {"use_tf32": "true", "prefer_nhwc": "0"}), True, "nchw"),
        (Provider(TENSORRT), True, "nchw"),
        (Provider(DIRECTML, {"prefer_nhwc": "1"}), False, "nchw"),
    ],
)
def test_options_tell_precision_and_layout(provider, tf32, layout):
    assert (provider.tf32, provider.layout) == (tf32, layout)


def test_the_energy_of_a_run_is_what_the_counter_moved_by(monkeypatch):
    """A device that takes 3 joules in a run, beside 1000 that were taken before."""
    runs, now = [], [0.0]
    monkeypatch.setattr(nvidia, "joules", lambda index: 1000.0 + 3.0 * len(runs))
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def call():
        runs.append(1)
        now[0] += 0.25

    assert joules_of(call, 0) == 3.0
    assert len(runs) == 8
