"""Single convolutions: what is called, whether it is right, and how it is timed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dwr_rewrite.cost import Target
from dwr_rewrite.errors import DwrError
from dwr_rewrite.lowerings import candidates
from dwr_rewrite.passes.fx.functional import convolve
from dwr_rewrite.passes.fx.geometry import Forms, Geometry
from dwr_rewrite.passes.fx.tune import TorchBench, bench, calibrate
from dwr_rewrite.passes.fx.tune.check import Gate, WrongError, terms
from dwr_rewrite.passes.fx.tune.clock import measure, stopwatch
from dwr_rewrite.passes.fx.tune.device import cache_bytes, describe, state
from dwr_rewrite.passes.fx.tune.flags import allows_tf32, flag, precision
from dwr_rewrite.passes.fx.tune.forms import call_of, geometry_of
from dwr_rewrite.passes.fx.tune.operands import COLD, MOST, operands, sets_of
from dwr_rewrite.planner.choice import by_measurement
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.timing import DECISIVE
from dwr_rewrite.tuning import Question
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.workload import DIRECTIONS, Workload

CPU = torch.device("cpu")


SPECS = {
    "2-D": ConvSpec(8, (3, 3), padding=((1, 1), (1, 1)), spatial=(7, 6), bias=True),
    "stride, multiplier": ConvSpec(8, (3, 3), 2, (2, 1), (1, 2), spatial=(9, 10)),
    "1-D": ConvSpec(8, (5,), padding=((2, 2),), spatial=(12,)),
    "3-D": ConvSpec(8, (2, 3, 3), spatial=(4, 5, 6)),
    "transposed": ConvSpec(
        8, (3, 3), 2, (2, 2), padding=((1, 1), (1, 1)), transposed=True, output_padding=(1, 1),
        spatial=(5, 4), bias=True,
    ),
    "one side": ConvSpec(8, (4, 4), padding=((1, 2), (1, 2)), spatial=(7, 7)),
}  # fmt: skip


def workload(name: str = "2-D", direction: Any = "forward", **changes: Any) -> Workload:
    options: dict[str, Any] = {"stored": direction == "forward"} | changes
    spec = replace(SPECS[name], dtype=options.pop("dtype", "float32"))
    return Workload(spec, options.pop("batch", 2), direction, **options)


def question(given: Workload) -> Question:
    return Question(given, tuple(candidates(given.spec)))


# --- what is called -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("width", [1, 4, 8])
def test_a_call_is_what_autograd_runs(name: str, direction: Any, width: int) -> None:
    given = workload(name, direction, dtype="float64", stored=False)
    made = operands(given, 2, CPU)
    found = call_of(given, width, made)(1)
    first, geometry = geometry_of(given)
    last = made.x[-1]
    before = [amount for pair in reversed(first) for amount in pair]
    x = nn.functional.pad(last, before) if before else last
    x = x.clone().requires_grad_()
    weight = made.weight.clone().requires_grad_()
    y = convolve(x, weight, made.bias, geometry, Forms(width, width, width))
    if direction == "forward":
        expected: Tensor = y.detach()
    else:
        wanted = x if direction == "grad_input" else weight
        [expected] = torch.autograd.grad(y, wanted, made.gradient[1])
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_stored_weight_gives_what_torch_does(name: str, layout: Any) -> None:
    given = workload(name, layout=layout, dtype="float64")
    spec = given.spec
    made = operands(given, 3, CPU)
    for width in (1, 4, 8):
        found = call_of(given, width, made, weights=2)(2)
        assert found.shape == given.output_shape
        if layout == "channels_last" and len(spec.kernel) > 1:
            assert made.x[2].stride(1) == 1
        geometry = Geometry(
            8, spec.kernel, spec.multiplier, spec.stride,
            (0,) * len(spec.kernel), spec.dilation, spec.transposed, spec.output_padding,
        )  # fmt: skip
        if not spec.transposed:
            flat = [n for pair in reversed(spec.padding) for n in pair]
            padded = nn.functional.pad(made.x[2], flat)
            plain = convolve(padded, made.weight, made.bias, geometry, Forms())
            assert torch.allclose(found, plain, rtol=0, atol=1e-12)


def test_operands_are_cold() -> None:
    given = workload()
    sets = sets_of(given, 10_000)
    assert sets * given.elements * given.itemsize >= COLD * 10_000
    assert sets_of(given, 1 << 40) == MOST
    assert sets_of(given, 1) == 2
    made = operands(given, 3, CPU)
    assert len({x.data_ptr() for x in made.x}) == 3
    assert all(x.data_ptr() % 64 == 0 for x in made.x)
    assert not any(torch.equal(made.x[0], other) for other in made.x[1:])
    assert not made.gradient
    assert len(operands(workload(direction="grad_input"), 3, CPU).x) == 1


# --- whether it is right --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", SPECS)
def test_every_form_passes(name: str, direction: Any, dtype: str) -> None:
    given = workload(name, direction, dtype=dtype, batch=4)
    made = operands(given, 1, CPU)
    gate = Gate.of(given, made)
    for recipe in candidates(given.spec).values():
        gate.check(call_of(given, recipe.packing.width, made)(0))


def rolled(given: Workload, width: int, made: Any, weights: int) -> Any:
    """The next channel's filter or gradient, in every form but keep."""
    call = call_of(given, width, made, weights)
    return (
        call if width == 1 else lambda i: call(i).roll(1, 0 if given.direction != "forward" else 1)
    )


def off_by_one_rounding(given: Workload, width: int, made: Any, weights: int) -> Any:
    call = call_of(given, width, made, weights)
    return call if width == 1 else lambda i: call(i) * (1 + 1e-4)


def not_a_number(given: Workload, width: int, made: Any, weights: int) -> Any:
    call = call_of(given, width, made, weights)
    return call if width == 1 else lambda i: call(i).index_fill(0, torch.tensor([0]), float("nan"))


def another_shape(given: Workload, width: int, made: Any, weights: int) -> Any:
    call = call_of(given, width, made, weights)
    return call if width == 1 else lambda i: call(i)[:1]


@pytest.mark.parametrize("build", [rolled, off_by_one_rounding, not_a_number, another_shape])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_form_that_computes_something_else_has_no_time(build: Any, direction: Any) -> None:
    asked = question(workload(direction=direction))
    [answer] = TorchBench(CPU, seconds=0.0, build=build).measure([asked])
    assert list(answer.timings) == ["keep"]
    assert list(answer.failures) == ["dense"]
    assert "than rounding explains" in answer.failures["dense"] or (
        "has the shape" in answer.failures["dense"]
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_depthwise_kernel_that_is_wrong_has_no_time_either(direction: Any) -> None:
    """As some of torch's are in channels_last: keep is held against another kernel too."""

    def wrong(given: Workload, width: int, made: Any, weights: int) -> Any:
        call = call_of(given, width, made, weights)
        return (lambda i: call(i) * 1.01) if width == 1 else call

    asked = question(workload(direction=direction, layout="channels_last"))
    [answer] = TorchBench(CPU, seconds=0.0, build=wrong).measure([asked])
    assert answer.timings == {}
    assert "than rounding explains" in answer.failures["keep"]


def test_memory_that_is_not_written_is_no_result() -> None:
    """Of a kernel that writes half of its result the other half holds what was there before."""

    def half(given: Workload, width: int, made: Any, weights: int) -> Any:
        call = call_of(given, width, made, weights)

        def run(i: int) -> Tensor:
            right = call(i)
            found = torch.empty_like(right).fill_(float("nan"))
            found[:1] = right[:1]
            return found

        return call if width == 1 else run

    [answer] = TorchBench(CPU, seconds=0.0, build=half).measure([question(workload())])
    assert "dense" in answer.failures


def test_the_gate_knows_how_long_its_sums_are() -> None:
    assert terms(workload()) == 10  # with the bias
    assert terms(workload(direction="grad_input")) == 9
    assert terms(workload("stride, multiplier", "grad_input")) == 18
    assert terms(workload("transposed")) == 10
    assert terms(workload("transposed", "grad_input")) == 18
    assert terms(workload(direction="grad_weight")) == 2 * 42
    assert terms(workload("transposed", "grad_weight")) == 2 * 20


def test_a_gate_refuses_a_small_error() -> None:
    given = workload(dtype="float64")
    made = operands(given, 1, CPU)
    result = call_of(given, 1, made)(0)
    gate = Gate.of(given, made)
    gate.check(result)
    wrong = result.clone()
    wrong[0, 0, 0, 0] += 1e-13
    with pytest.raises(WrongError, match="1 of 672 elements are further"):
        gate.check(wrong)


# --- how it is timed ------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_answer_has_paired_times(direction: Any, tmp_path: Path) -> None:
    asked = question(workload(direction=direction))
    measuring = TorchBench(CPU, seconds=0.0)
    [answer] = measuring.measure([asked])
    assert {*answer.timings, *answer.failures} == set(asked.forms)
    assert {len(t.samples) % 2 for t in answer.timings.values()} == {0}
    assert len(answer.timings["keep"].samples) >= 2 * DECISIVE
    assert by_measurement(answer, 1.02).options[0].form == "keep"
    with Database.open(tmp_path / "db.sqlite3") as database:
        database.put(measuring.device, answer)
        assert database.get(measuring.device, asked) is not None


def test_what_does_not_run_is_a_failure() -> None:
    def build(given: Workload, width: int, made: Any, weights: int) -> Any:
        if width == 8:
            raise torch.OutOfMemoryError("CUDA out of memory.\nof 3 GiB")
        return call_of(given, width, made, weights)

    [answer] = TorchBench(CPU, seconds=0.0, build=build).measure([question(workload())])
    assert answer.failures == {"dense": "CUDA out of memory."}
    assert list(answer.timings) == ["keep"]


def test_where_keep_does_not_run_there_is_no_time() -> None:
    def build(given: Workload, width: int, made: Any, weights: int) -> Any:
        raise NotImplementedError("not for this type")

    [answer] = TorchBench(CPU, seconds=0.0, build=build).measure([question(workload())])
    assert answer.timings == {}
    assert answer.failures["keep"] == "not for this type"


def test_a_broken_device_ends_the_work() -> None:
    def build(given: Workload, width: int, made: Any, weights: int) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DwrError, match="broke the device: CUDA error: an illegal"):
        list(TorchBench(CPU, build=build).measure([question(workload())]))


def test_a_hopeless_form_is_not_timed_further() -> None:
    def build(given: Workload, width: int, made: Any, weights: int) -> Any:
        call = call_of(given, width, made, weights)
        return call if width == 1 else lambda i: [call(i) for _ in range(50)][0]  # noqa: RUF015

    [answer] = TorchBench(CPU, seconds=0.0, build=build).measure([question(workload())])
    assert "times as long as those of keep" in answer.failures["dense"]


def test_a_form_that_takes_too_long_is_run_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SLOWEST", -1.0)
    [answer] = TorchBench(CPU, seconds=0.0).measure([question(workload())])
    assert "one call takes 0.00 s" in answer.failures["keep"]
    assert not answer.timings


def test_the_device_is_all_that_changes_an_answer() -> None:
    device = describe(CPU)
    assert device.target
    assert (device.engine, device.facts["torch"]) == ("torch", torch.__version__)
    assert device.facts["threads"] == str(torch.get_num_threads())
    with flag(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark):
        assert describe(CPU) != device
    with precision(not allows_tf32()):
        assert describe(CPU) == device  # every workload says whether it may be rounded to TF32
    assert describe(CPU) == device
    assert (state(CPU), cache_bytes(CPU) > 1 << 20) == ({}, True)


def test_flags_are_put_back() -> None:
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    for tf32 in (False, True):
        with precision(tf32, products=True):
            assert allows_tf32() is tf32
            assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is tf32
    with pytest.raises(ZeroDivisionError), precision(not allows_tf32()):
        1 / 0  # noqa: B018
    after = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    assert after == before


@pytest.mark.parametrize(
    ("conv", "rnn"), [("tf32", "tf32"), ("ieee", "tf32"), ("none", "none"), ("tf32", "ieee")]
)
def test_tf32_can_be_read_by_the_older_flag_too(conv: str, rnn: str) -> None:
    """As Inductor does; torch raises where the flags of single operators differ."""
    cudnn: Any = torch.backends.cudnn
    with flag(cudnn.conv, "fp32_precision", conv), flag(cudnn.rnn, "fp32_precision", rnn):
        changed = not allows_tf32()
        with precision(changed):
            assert cudnn.allow_tf32 is changed
        assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == (conv, rnn)


def test_every_set_of_operands_has_its_turn() -> None:
    turns: list[int] = []
    watch = stopwatch(CPU)
    with watch.running():
        [sample] = watch.samplers([lambda i: (turns.append(i), sum(range(1000)))], 3)
        [timing] = measure([sample], 0.0)
    assert set(turns) == {0, 1, 2}
    assert turns[:6] == [0, 1, 2, 0, 1, 2]
    assert len(timing.samples) >= 2 * DECISIVE


def test_rates_make_a_target() -> None:
    found = calibrate.rates("cpu", calibrate.Effort(1 << 16, 32))
    target = Target.measured("this CPU", found)
    assert target.multiprocessors == torch.get_num_threads()
    assert set(target.matrix) == {"float16", "bfloat16"}
    assert all(value > 0 for value in found.values())
