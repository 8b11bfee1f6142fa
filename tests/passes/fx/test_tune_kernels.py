"""Kernels of our own under ``auto``: who is asked about them, how they are timed, what is named."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dwr_rewrite as dwr
from dwr_rewrite.kernels import ops, tiles
from dwr_rewrite.lowerings import candidates, is_kernel
from dwr_rewrite.passes.fx.api import survey
from dwr_rewrite.passes.fx.geometry import Forms
from dwr_rewrite.passes.fx.linked import UNDO
from dwr_rewrite.passes.fx.tune import TorchBench, kernels
from dwr_rewrite.passes.fx.tune.check import Gate
from dwr_rewrite.passes.fx.tune.device import describe
from dwr_rewrite.passes.fx.tune.forms import call_of
from dwr_rewrite.passes.fx.tune.operands import operands
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.tuning import Device, Question
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.workload import DIRECTIONS, Workload
from tests.passes.fx.test_tune_bench import workload
from tests.passes.fx.tuning import FakeBench, FakeTimer, auto, forms, image, per_site

CPU = torch.device("cpu")
TILE = "kernel:fma.c1.p16.d1.r1.v1.w4.s1"
FASTER = per_site(-0.1)
GPU = Device("FAKE 9000", "torch", {
    "device": "FAKE 9000", "torch": torch.__version__, "multiprocessors": "132",
    kernels.FACT: kernels.digest(),
})  # fmt: skip
"""A device on which the kernels of this version run."""


@pytest.fixture
def aten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own convolutions in place of the interpreter, which is slow."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.second = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.fixture
def net() -> Net:
    return Net().eval()


def kernels_faster(work: Workload, form: str) -> float:
    """The last tile that is asked about is the fastest form."""
    return 0.5 if form == best(work) else 1.0


def best(work: Workload) -> str:
    return f"kernel:{tiles.candidates(work, 132)[-1]}"


# ---------------------------------------------------------------------------- who is asked


def test_a_device_is_asked_about_the_tiles_that_are_worth_it(net: Net) -> None:
    bench = FakeBench(kernels_faster, GPU)
    auto(net, image(), bench, FakeTimer(FASTER))
    assert bench.asked
    for question in bench.asked:
        asked = [form for form in question.forms if is_kernel(form)]
        assert question.forms[: -len(asked)] == tuple(candidates(question.workload.spec))
        assert asked == [f"kernel:{t}" for t in tiles.candidates(question.workload, 132)]
        assert 1 <= len(asked) <= 8


@pytest.mark.parametrize("facts", [{}, {kernels.FACT: "of another version"}])
def test_a_device_without_these_kernels_is_not_asked_about_any(net: Net, facts: Any) -> None:
    rest = {name: value for name, value in GPU.facts.items() if name != kernels.FACT}
    bench = FakeBench(kernels_faster, replace(GPU, facts=rest | facts))
    auto(net, image(), bench, FakeTimer(FASTER))
    assert bench.asked
    assert not any(is_kernel(form) for question in bench.asked for form in question.forms)


def test_a_cpu_is_never_asked_though_the_interpreter_runs_there(net: Net) -> None:
    assert ops.available(CPU)
    assert kernels.FACT not in describe(CPU).facts
    for question in survey(net, image()).questions:
        assert question.forms == tuple(candidates(question.workload.spec))


def test_what_no_kernel_takes_is_not_asked_about() -> None:
    ask = kernels.asked_of(GPU)
    spec = ConvSpec(8, (3, 3), spatial=(64, 64))
    assert ask(Workload(spec, 1))
    assert ask(Workload(replace(spec, stride=(17, 17)), 1)) == ()
    assert kernels.heuristic(Workload(spec, 1)) == ("kernel",)
    assert kernels.heuristic(Workload(replace(spec, stride=(17, 17)), 1)) == ()


def test_a_changed_kernel_is_another_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = tmp_path / "kernels", list[str]()
    shutil.copytree(Path(tiles.__file__).parent, folder)
    monkeypatch.setattr(kernels, "files", lambda package: folder)
    for change in ("", "", "# changed\n"):
        with (folder / "gather.py").open("a") as source:
            source.write(change)
        found.append(kernels.digest.__wrapped__())  # what is remembered is of the package itself
    assert found[0] == found[1] != found[2]


# --------------------------------------------------------------------------- what is taken


@pytest.mark.usefixtures("aten")
def test_the_fastest_tile_of_each_site_is_written_and_named(net: Net) -> None:
    bench = FakeBench(kernels_faster, GPU)
    fast = auto(net, image(), bench, FakeTimer(FASTER))
    found = {site.name: site for site in dwr.record(fast)}
    assert set(forms(fast)) == {"first", "second"}
    for name, site in found.items():
        [choice] = site.choices
        assert site.form == choice.form == best(choice.workload)
        assert (site.weights, site.growth, site.macs[0]) == ("linked", 0, site.macs[1])
        assert vars(getattr(fast, name))[UNDO].forms == Forms(site.form, 1, 1)
    assert torch.allclose(fast(image()), net(image()), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("aten")
def test_each_direction_has_a_tile_of_its_own(net: Net) -> None:
    def rule(work: Workload, form: str) -> float:
        wanted = "dense" if work.direction == "grad_input" else best(work)
        return 0.5 if form == wanted else 1.0

    fast = auto(net.train(), image(), FakeBench(rule, GPU), FakeTimer(FASTER), linked=True)
    [forward, grad_input, grad_weight] = dwr.record(fast)[1].choices
    expected = Forms(best(forward.workload), 16, best(grad_weight.workload))
    assert grad_input.form == "dense"
    assert vars(fast.second)[UNDO].forms == expected
    x, other = image().requires_grad_(), copy.deepcopy(net)
    fast(x).square().sum().backward()
    other(image()).square().sum().backward()
    for ours, theirs in zip(fast.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("aten")
def test_what_a_device_answered_names_tiles_elsewhere(net: Net) -> None:
    auto(net, image(), FakeBench(kernels_faster, GPU), FakeTimer(FASTER))
    with Database.open() as database:
        assert [d.facts[kernels.FACT] for d in database.devices()] == [kernels.digest()]
    precision = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # a CPU answered without TF32
    try:
        fast = dwr.fx_rewrite(net, image(), target="fake-9000")
    finally:
        torch.backends.cudnn.conv.fp32_precision = precision
    assert {s.form: s.weights for s in dwr.record(fast)} == {
        best(s.choices[0].workload): "linked" for s in dwr.record(fast)
    }  # fmt: skip


def test_a_device_that_is_not_here_has_no_kernels_by_assumption(net: Net) -> None:
    fast = dwr.fx_rewrite(net, image(), target="H200")
    options = [o.form for s in dwr.record(fast) for c in s.choices for o in c.options]
    assert options
    assert not any(map(is_kernel, options))


# ------------------------------------------------------------------------- how it is timed


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("2-D", "float64"), ("2-D", "bfloat16"), ("2-D", "float16"), ("1-D", "float32"),
     ("one side", "float32")],
)  # fmt: skip
def test_a_kernel_passes_the_gate(name: str, direction: Any, dtype: str) -> None:
    given = workload(name, direction, dtype=dtype)
    made = operands(given, 1, CPU)
    gate = Gate.of(given, made)
    gate.check(call_of(given, "kernel", made)(0))


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("stored", [True, False])
def test_a_kernel_is_timed_beside_the_others(stored: bool) -> None:
    given = workload(stored=stored)
    asked = Question(given, ("keep", "dense", "kernel", TILE))
    [answer] = TorchBench(CPU, seconds=0.0).measure([asked])
    assert {*answer.timings, *answer.failures} == set(asked.forms)
    assert not any("rounding" in failure for failure in answer.failures.values())


def test_a_kernel_that_computes_something_else_has_no_time() -> None:
    def build(given: Workload, form: Any, made: Any, weights: int) -> Any:
        call = call_of(given, form, made, weights)
        return (lambda i: call(i).roll(1, 1)) if isinstance(form, str) else call

    [answer] = TorchBench(CPU, seconds=0.0, build=build).measure(
        [Question(workload(), ("keep", "kernel"))]
    )
    assert list(answer.timings) == ["keep"]
    assert "than rounding explains" in answer.failures["kernel"]


class DoesNotCompileError(Exception):
    """As those of Triton, which have no base of their own."""


@pytest.mark.parametrize("form", ["kernel", "dense"])
def test_a_kernel_that_does_not_compile_is_a_failure(form: str) -> None:
    def build(given: Workload, entry: Any, made: Any, weights: int) -> Any:
        if entry != 1:
            raise DoesNotCompileError("out of resource: shared memory\nand more")
        return call_of(given, entry, made, weights)

    asked = [Question(workload(), ("keep", form))]
    bench = TorchBench(CPU, seconds=0.0, build=build)
    if form == "dense":  # the twin: no other form is forgiven what nobody knows
        with pytest.raises(DoesNotCompileError):
            list(bench.measure(asked))
        return
    [answer] = bench.measure(asked)
    assert answer.failures == {"kernel": "out of resource: shared memory"}


def test_a_form_that_cannot_be_is_a_failure() -> None:
    spec = ConvSpec(8, (3, 3), stride=(17, 17), spatial=(40, 40))
    [answer] = TorchBench(CPU, seconds=0.0).measure(
        [Question(Workload(spec, 1, stored=False), ("keep", "kernel"))]
    )
    assert "a stride of up to 16" in answer.failures["kernel"]
