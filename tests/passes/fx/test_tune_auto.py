"""The policy ``auto``: from times to a model, and never to a slower one."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

import dwr_rewrite as dwr
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.api import runtime, survey
from dwr_rewrite.passes.fx.geometry import Forms
from dwr_rewrite.passes.fx.linked import UNDO
from dwr_rewrite.passes.fx.tune import TorchBench
from dwr_rewrite.passes.fx.tune.auto import Instruments
from dwr_rewrite.passes.fx.tune.places import is_here, place, recorded
from dwr_rewrite.passes.fx.tune.settings import possible
from dwr_rewrite.passes.fx.tune.whole import Run, Work, time_runs
from dwr_rewrite.tuning import Device
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.tuning.tune import tune
from tests.passes.fx.tuning import (
    FakeBench,
    FakeTimer,
    auto,
    codes,
    forms,
    forms_faster,
    image,
    per_site,
    timing,
)

FASTER, SLOWER = per_site(-0.1), per_site(0.1)


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tuning.sqlite3"
    monkeypatch.setenv("DWR_TUNING_DATABASE", str(path))
    return path


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 5, padding=2, groups=16)
        self.third = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.third(self.second(self.norm(self.first(x)))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def widths(model: nn.Module) -> dict[str, Forms]:
    named = model.named_modules()
    return {name: vars(module)[UNDO].forms for name, module in named if UNDO in vars(module)}


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


# --- choosing -------------------------------------------------------------------------------------


def test_the_fastest_form_is_stored(net: Net) -> None:
    bench, timer = FakeBench(forms_faster(forward="blocks:8")), FakeTimer(FASTER)
    fast = auto(net, image(), bench, timer)
    assert forms(fast) == dict.fromkeys(("first", "second", "third"), "blocks:8")
    assert torch.allclose(fast(image()), net(image()), atol=1e-5)
    [choice] = dwr.record(fast)[0].choices
    assert (choice.form, [option.form for option in choice.options]) == (
        "blocks:8", ["keep", "blocks:8", "dense"],
    )  # fmt: skip
    layouts = [question.workload.layout for question in bench.asked]
    assert sorted(layouts) == ["channels_last"] * 2 + ["nchw"] * 2  # two of the three are the same
    site = dwr.record(fast)[0]
    assert (site.spec.spatial, site.macs) == ((10, 10), (100 * 16 * 9, 8 * 100 * 16 * 9))
    timed = runtime(fast)
    assert [trial.accepted for trial in timed.trials] == [True]
    assert timed.trials[0].speedup.median == pytest.approx(1 / 0.7)
    assert timed.measurements[0].name == "inference"


def test_each_direction_takes_a_form_of_its_own(net: Net) -> None:
    """The first convolution's input is the image, which takes no gradient."""
    rule = forms_faster(grad_input="blocks:8", grad_weight="dense")
    fast = auto(net.train(), image(), FakeBench(rule), FakeTimer(FASTER), linked=True)
    both = Forms(1, 8, 16)
    assert widths(fast) == {"first": Forms(1, 1, 16), "second": both, "third": both}
    assert runtime(fast).measurements[0].name == "training step"
    assert [c.workload.direction for c in dwr.record(fast)[0].choices] == ["forward", "grad_weight"]


def test_modules_and_calls_of_a_graph(net: Net) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.weight = net, nn.Parameter(torch.ones(16, 1, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(self.net(x), self.weight, groups=16)

    bench = FakeBench(forms_faster(forward="dense"))
    fast = auto(symbolic_trace(Calls().eval()), image(), bench, FakeTimer(FASTER))
    names = {"net.first", "net.second", "net.third", "conv2d"}
    assert forms(fast) == dict.fromkeys(names, "dense")


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_an_exported_program_brings_its_inputs(net: Net) -> None:
    program = torch.export.export(net, (image(),))
    fast = auto(program, None, FakeBench(forms_faster(forward="dense")), FakeTimer(FASTER))
    assert set(forms(fast).values()) == {"dense"}
    assert len(forms(fast)) == 3
    assert runtime(fast).trials[0].accepted


def test_keyword_arguments(net: Net) -> None:
    bench = FakeBench(forms_faster(forward="dense"))
    assert forms(auto(net, {"x": image()}, bench, FakeTimer(FASTER)))


def test_a_step_of_the_user_is_what_is_timed(net: Net) -> None:
    given: list[nn.Module] = []

    def step(model: nn.Module) -> None:
        given.append(model)
        model(image()).sum().backward()

    bench = FakeBench(forms_faster(grad_weight="dense"))
    fast = auto(net.train(), None, bench, FakeTimer(FASTER), linked=True, step=step)
    assert set(widths(fast).values()) == {Forms(1, 1, 16)}
    assert runtime(fast).measurements[0].name == "step"
    assert net not in given
    assert all(p.grad is None for p in net.parameters())


# --- never slower ---------------------------------------------------------------------------------


def test_where_every_form_is_slower_nothing_is_changed(net: Net) -> None:
    timer = FakeTimer(FASTER)
    fast = auto(net, image(), FakeBench(lambda _, form: 1 if form == "keep" else 2), timer)
    assert [type(m) for m in fast.modules()] == [type(m) for m in net.modules()]
    assert bits(fast) == bits(net)
    assert torch.equal(fast(image()), net(image()))
    assert fast is not net
    assert set(codes(fast).values()) == {"not-faster"}
    assert all(site.macs[0] == site.macs[1] > 0 for site in dwr.record(fast))
    assert runtime(fast).trials == ()
    assert all(len(sites) == 0 for round_ in timer.timed for sites in round_)


def test_where_the_whole_model_is_slower_all_of_it_is_taken_back(net: Net, caplog) -> None:
    caplog.set_level(logging.INFO, "dwr_rewrite")
    before = bits(net)
    bench = FakeBench(forms_faster(forward="dense"))
    fast = auto(net, image(), bench, FakeTimer(SLOWER), inplace=True)
    assert fast is net
    assert bits(net) == before
    assert widths(net) == {}
    assert {site.reason.reason for site in dwr.record(net)} == {
        "with it the whole model was not faster"
    }
    assert [trial.sites for trial in runtime(net).trials] == [3, 1]
    assert not any(trial.accepted for trial in runtime(net).trials)
    assert "kept the original: no faster form on FAKE (torch) (measured on FAKE" in caplog.text


def test_the_least_useful_go_first(net: Net) -> None:
    def rule(workload: Any, form: str) -> float:
        return (0.1 if workload.spec.taps == 25 else 0.9) if form == "dense" else 1.0

    def whole(names: list[str]) -> float:
        return 1.1 if "first" in names or "third" in names else 1 - 0.2 * len(names)

    fast = auto(net, image(), FakeBench(rule), FakeTimer(whole))
    assert forms(fast) == {"second": "dense"}
    assert [(t.sites, t.accepted) for t in runtime(fast).trials] == [(3, False), (1, True)]


def test_the_margin_counts_for_forms_and_for_the_whole(net: Net) -> None:
    bench = FakeBench(forms_faster(forward="dense"))
    assert not forms(auto(net, image(), bench, FakeTimer(per_site(-0.01)), min_speedup=1.05))
    assert forms(auto(net, image(), bench, FakeTimer(per_site(-0.03)), min_speedup=1.05))
    assert not forms(auto(net, image(), bench, FakeTimer(FASTER), min_speedup=2.5))


class Settings:
    """A timer by the layout of the image, and the sites that are rewritten."""

    def __init__(self, last: float, given: float, last_fast: float, given_fast: float) -> None:
        self.seconds = {(True, False): last, (False, False): given, (True, True): last_fast,
                        (False, True): given_fast}  # fmt: skip

    def __call__(self, runs: list[Run], seconds: float) -> tuple[Any, ...]:
        found = []
        for run in runs:
            [x] = run.work.inputs
            last = x.is_contiguous(memory_format=torch.channels_last)
            found.append(timing(self.seconds[last, bool(widths(run.model))]))
        return tuple(found)


def test_the_gain_is_over_the_best_free_setting(net: Net) -> None:
    bench = FakeBench(forms_faster(forward="dense"))
    fast = auto(net, image(), bench, Settings(0.5, 1.0, 0.4, 0.9))
    timed = runtime(fast)
    assert timed.setting == "channels_last"
    assert timed.trials[0].speedup.median == pytest.approx(0.5 / 0.4)
    assert [m.name for m in timed.measurements] == [
        "inference, channels_last", "inference, as given",
    ]  # fmt: skip
    assert {question.workload.layout for question in bench.asked} == {"channels_last"}
    assert forms(fast)
    assert next(fast.parameters()).is_contiguous()  # the setting is advice, and not applied


@pytest.mark.parametrize("times", [(0.5, 1.0, 0.6, 0.9), (0.5, 1.0, 0.4, 1.1)], ids=str)
def test_what_is_slower_with_the_setting_or_without_it_is_kept(net: Net, times: Any) -> None:
    bench = FakeBench(forms_faster(forward="dense"))
    fast = auto(net, image(), bench, Settings(*times))
    assert not forms(fast)
    assert runtime(fast).setting == "channels_last"
    assert not any(trial.accepted for trial in runtime(fast).trials)


class Layouts:
    """A timer by the layouts of image and weights, and whether there are rewritten sites."""

    def __init__(self, plain: float, mixed: float, last: float) -> None:
        self.rewritten = {(False, False): plain, (False, True): mixed, (True, True): last}

    def __call__(self, runs: list[Run], seconds: float) -> tuple[Any, ...]:
        found = []
        for run in runs:
            [x], weight = run.work.inputs, run.model.third.weight
            image, weights = (is_last(tensor) for tensor in (x, weight))
            original = 1.3 if weights else 1.0
            rewritten = bool(widths(run.model))
            found.append(timing(self.rewritten[image, weights] if rewritten else original))
        return tuple(found)


def is_last(tensor: torch.Tensor) -> bool:
    """By the strides: of a tensor with one channel both layouts are contiguous."""
    return tensor.stride(1) == 1


@pytest.mark.parametrize(
    ("times", "layout"),
    [
        ((0.9, 0.8, 0.6), torch.channels_last),
        ((0.5, 0.8, 0.6), torch.contiguous_format),
        ((1.1, 1.1, 0.6), None),  # with the image as it was given it is slower
    ],
)
def test_the_layout_in_which_the_forms_win_goes_with_them(
    net: Net, times: Any, layout: Any
) -> None:
    bench = FakeBench(forms_faster(forward="dense"))
    fast = auto(net, image(), bench, Layouts(*times))
    assert bool(forms(fast)) == (layout is not None)
    weight = fast.third.weight
    assert weight.is_contiguous(memory_format=layout or torch.contiguous_format)
    assert runtime(fast).setting == ""
    assert torch.allclose(fast(image()), net(image()), atol=1e-5)
    if layout == torch.channels_last:
        assert runtime(fast).trials[-1].speedup.median == pytest.approx(1 / 0.6)


class WrongInLast(FakeBench):
    """Its depthwise kernel of 5x5 is wrong in channels_last."""

    def measure(self, questions: Any) -> Iterator[Any]:
        for answer in super().measure(questions):
            workload = answer.workload
            bad = workload.layout == "channels_last" and workload.spec.kernel == (5, 5)
            yield replace(answer, timings={}, failures={"keep": "wrong"}) if bad else answer


def test_a_layout_in_which_a_depthwise_kernel_is_wrong_is_not_taken(net: Net) -> None:
    """Though nothing else is faster, and though the other sites are right in it."""
    times = Layouts(1.1, 0.8, 0.6)
    other = FakeBench(forms_faster(forward="dense"), Device("OTHER", "torch", {"device": "OTHER"}))
    assert forms(auto(net, image(), other, times))
    kept = auto(net, image(), WrongInLast(forms_faster(forward="dense")), times)
    assert forms(kept) == {}
    assert bits(kept) == bits(net)
    assert kept.third.weight.is_contiguous()


# --- what is left behind --------------------------------------------------------------------------


def test_nothing_is_left_behind(net: Net) -> None:
    model, x = net.train(), image().requires_grad_()
    before, states = bits(model), (random.getstate(), torch.get_rng_state())
    numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
    bench = FakeBench(forms_faster(forward="dense"))
    auto(model, x, bench, FakeTimer(FASTER), linked=True)
    assert bits(model) == before
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.random.get_state()[1].tolist() == numpy  # noqa: NPY002
    assert not any(module._forward_hooks for module in model.modules())


def test_what_was_measured_is_not_measured_again(net: Net) -> None:
    first, second = (FakeBench(forms_faster(forward="dense")) for _ in range(2))
    one, two = (auto(net, image(), bench, FakeTimer(FASTER)) for bench in (first, second))
    assert first.asked
    assert not second.asked
    assert forms(one) == forms(two)


def test_what_was_shared_out_is_not_measured_again(net: Net) -> None:
    bench = FakeBench(forms_faster(forward="dense"))
    sites = survey(net, image())
    assert list(sites.workloads) == ["first", "second", "third"]
    with Database.open() as opened:
        tune(sites.questions, bench, opened, budget=1e9)
    assert len(bench.asked) == 2
    auto(net, image(), bench, FakeTimer(FASTER))
    assert {question.workload.layout for question in bench.asked[2:]} == {"channels_last"}


def test_only_what_runs_on_one_device_is_surveyed(net: Net) -> None:
    with pytest.raises(DwrError, match="pass example_inputs or a step"):
        survey(net)
    with pytest.raises(DwrError, match="lie on several devices"):
        survey(net, image().to("meta"))


def test_without_a_budget_only_what_is_recorded_counts(net: Net) -> None:
    bench = FakeBench(forms_faster(forward="dense"))
    assert set(codes(auto(net, image(), bench, FakeTimer(FASTER), budget=0)).values()) == {
        "not-measured"
    }
    auto(net, image(), bench, FakeTimer(FASTER))
    assert forms(auto(net, image(), bench, FakeTimer(FASTER), budget=0))


# --- where there is nothing to measure ------------------------------------------------------------


def kept_for(model: nn.Module, *inputs: Any, **options: Any) -> str:
    kept = dwr.fx_rewrite(model, *inputs, **options)
    assert bits(kept) == bits(model)
    assert runtime(kept) is None
    [reason] = {site.reason.reason for site in dwr.record(kept)}
    return reason


def test_on_a_cpu_nothing_is_chosen(net: Net) -> None:
    assert "nothing says what it is to be fast on" in kept_for(net, image())
    assert "without example_inputs (or a step)" in kept_for(net)
    assert "without example_inputs (or a step)" in kept_for(net, target="cpu")


def test_a_model_without_depthwise_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3)).eval()
    assert dwr.record(dwr.fx_rewrite(model, image(), target="cpu")) == []


def test_the_cost_model_of_a_device_that_is_not_here(net: Net) -> None:
    fast = dwr.fx_rewrite(net, image(), target="H200")
    assert runtime(fast) is None
    choices = [choice for site in dwr.record(fast) for choice in site.choices]
    assert len(choices) == 3
    assert all(o.time is None and o.predicted > 0 for c in choices for o in c.options)
    assert all(choice.workload.tf32 for choice in choices)  # torch's default on a GPU


def test_the_answers_that_a_device_has_given_before(net: Net, database: Path) -> None:
    device = Device("NVIDIA FAKE 9000", "torch", {"torch": torch.__version__})
    bench = FakeBench(forms_faster(forward="dense"), device)
    auto(net, image(), bench, FakeTimer(FASTER))
    precision = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # a CPU answered without TF32
    try:
        fast = dwr.fx_rewrite(net, image(), target="fake-9000")
    finally:
        torch.backends.cudnn.conv.fp32_precision = precision
    assert set(forms(fast).values()) == {"dense"}
    assert runtime(fast) is None
    with Database.open() as opened:
        [found] = opened.devices()
    assert recorded([found, replace(found, engine="CPUExecutionProvider")], "FAKE 9000") == found
    assert recorded([found], "H200") is None


def test_of_two_recorded_devices_the_one_with_this_torch() -> None:
    old, new = (Device("H200", "torch", {"torch": version}) for version in ("1", torch.__version__))
    assert recorded([old, new], "h200") is recorded([new, old], "h200") is new


def test_places(net: Net) -> None:
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert place(net, Work((image(),))) == cpu
    assert place(net, Work((image().to("meta"),))) is None
    assert place(nn.ReLU(), Work()) == cpu
    assert is_here(cpu, "CPU")
    assert not is_here(cpu, "H200")
    assert not is_here(meta, "cpu")
    with pytest.raises(DwrError, match="does not run on the example inputs"):
        dwr.fx_rewrite(net, image().to("meta"))
    bench = FakeBench(forms_faster())
    with pytest.raises(DwrError, match=r"target='cpu', but the model is not on the CPU"):
        auto(nn.Conv2d(4, 4, 3, groups=4, device="meta"), image().to("meta"), bench, None)


WRONG = [
    (dict(budget=-1), "budget -1: a number of at least 0 expected"),
    (dict(budget=float("nan")), "budget nan"),
    (dict(min_speedup=0.9), "min_speedup 0.9: a number of at least 1 expected"),
    (dict(target=5), "target 5: the name of a device expected"),
    (dict(step=5), "step 5: a function"),
    (dict(target="PDP-11"), "no target is known as 'PDP-11'; known: H200"),
    (dict(policy="keep", target="cpu"), "target, budget, .* are for policy='auto'"),
    (dict(policy={"forward": "auto"}), "policy 'auto' for 'forward': it is for all directions"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=str)
def test_a_wrong_argument(net: Net, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DwrError, match=message):
        dwr.fx_rewrite(net, image(), **options)


class Argmax(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).argmax(1)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_what_cannot_be_copied(net: Net) -> None:
    nn.utils.weight_norm(net.first)
    net(image())
    with pytest.raises(DwrError, match=r"cannot be copied, which its trials need: .*; name a form"):
        auto(net, image(), FakeBench(forms_faster()), FakeTimer(FASTER))


def test_what_does_not_run(net: Net) -> None:
    bench, timer = FakeBench(forms_faster()), FakeTimer(FASTER)
    with pytest.raises(DwrError, match=r"Net does not run on the example inputs: .*channels"):
        auto(net, image(channels=3), bench, timer)
    with pytest.raises(DwrError, match="Net does not run on its step: division by zero"):
        auto(net, image(), bench, timer, step=lambda _: 1 / 0)
    with pytest.raises(DwrError, match="no output of the model takes a gradient"):
        Run(Argmax(), Work((image(),), training=True))()


# --- the whole way, on this CPU -------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_a_cpu_as_the_target(net: Net, training: bool) -> None:
    """Whatever is faster here, it computes the same; and a wrong form could not be taken."""
    model = net.train(training)
    model.drop.p = 0.0
    instruments = Instruments(lambda device: TorchBench(device, seconds=0.0), time_runs)
    fast = auto(model, image(), instruments.bench(torch.device("cpu")), time_runs,
                linked=training, budget=20.0)  # fmt: skip
    assert runtime(fast).device == str(instruments.bench(torch.device("cpu")).device)
    assert {setting.name for setting in runtime(fast).settings} == {
        "channels_last", "autocast bfloat16",
    }  # fmt: skip
    assert any(site.choices for site in dwr.record(fast))
    one, other = copy.deepcopy(fast)(image()), copy.deepcopy(model)(image())
    assert torch.allclose(one, other, rtol=0, atol=1e-4)


def test_free_settings_are_those_that_a_model_does_not_have(net: Net) -> None:
    cpu = torch.device("cpu")

    def names(model: nn.Module, x: torch.Tensor, **work: Any) -> list[str]:
        return [free.name for free in possible(Run(model, Work((x,), **work)), cpu)]

    last = image().to(memory_format=torch.channels_last)
    assert names(net, image()) == ["channels_last", "autocast bfloat16"]
    assert names(net, image(), compiled=True) == ["channels_last"]
    assert names(net, last) == ["autocast bfloat16"]
    assert names(nn.Conv1d(4, 4, 3), image()) == ["autocast bfloat16"]


def test_a_setting_that_does_not_run_is_told(net: Net) -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.is_contiguous(), "only contiguous"
            return self.net(x)

    fast = auto(Picky().eval(), image(), FakeBench(forms_faster()), FakeTimer(FASTER))
    failed, ran = runtime(fast).settings
    assert (failed.name, failed.failure, failed.speedup) == (
        "channels_last", "only contiguous", None,
    )  # fmt: skip
    assert (ran.failure, ran.rounds_alike) == ("", False)
    assert ran.speedup is not None


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh")
def test_a_model_that_is_compiled_already(net: Net) -> None:
    compiled = torch.compile(net, backend="eager")
    fast = auto(compiled, image(), FakeBench(forms_faster(forward="dense")), FakeTimer(FASTER))
    assert forms(fast) == {f"_orig_mod.{name}": "dense" for name in ("first", "second", "third")}


@pytest.mark.usefixtures("fresh")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_models_are_compiled_before_they_are_timed(net: Net) -> None:
    count = 0

    def step(model: nn.Module) -> None:
        nonlocal count
        assert hasattr(model, "_orig_mod")
        count += 1

    run = Run(net, Work(step=step, compiled=True))
    run()
    assert count == 1
    assert str(run.work) == "step, compiled"
