"""Which convolutions are weighed, and as what: names, sizes, directions, types and layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

from dwr_rewrite.passes.fx import api
from dwr_rewrite.passes.fx.decide import options
from dwr_rewrite.passes.fx.tune.profile import Survey, survey_notes, survey_run
from dwr_rewrite.passes.fx.tune.whole import Run, Work
from dwr_rewrite.passes.fx.verify.sites import as_module
from dwr_rewrite.planner.auto import Sites
from dwr_rewrite.workload import Workload
from tests.passes.fx.tuning import image

GROWTH = 256 << 20


def survey_of(model: Any, linked: bool) -> Survey:
    survey = Survey()
    list(api._rewrite(model, options("keep", linked, (), (), GROWTH).by(survey)))
    return survey


def profile(model: Any, *inputs: Any, linked: bool = False, gpu: bool = False) -> Sites:
    survey = survey_of(model, linked)
    module = as_module(model)
    run = Run(module, Work(inputs, training=linked))
    return survey_run(module, survey, run, gpu, GROWTH)


def by_direction(sites: Sites, name: str) -> dict[str, Workload]:
    return {workload.direction: workload for workload in sites.workloads[name]}


class Net(nn.Module):
    """Modules and a call; `first` sees the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.inner = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 32, (1, 5), stride=2, groups=32))
        self.never = nn.Conv2d(4, 4, 3, groups=4)
        self.weight = nn.Parameter(torch.randn(32, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(self.first(x))
        return F.conv2d(x, self.weight, padding="same", groups=32)


def test_stored_weights_are_weighed_forward() -> None:
    sites = profile(Net().eval(), image())
    assert list(sites.workloads) == ["first", "inner.1"]
    [first] = sites.workloads["first"]
    assert (first.direction, first.stored, first.batch) == ("forward", True, 2)
    assert (first.input_shape, first.output_shape) == ((2, 16, 10, 10), (2, 32, 10, 10))
    assert (first.layout, first.spec.dtype, first.tf32) == ("nchw", "float32", False)
    [inner] = sites.workloads["inner.1"]
    assert inner.output_shape == (2, 32, 5, 3)
    assert {name: why.code for name, why in sites.left.items()} == {"never": "not-run"}


def test_linked_weights_are_weighed_in_the_directions_that_run() -> None:
    sites = profile(Net().train(), image(), linked=True)
    assert list(by_direction(sites, "first")) == ["forward", "grad_weight"]
    assert list(by_direction(sites, "inner.1")) == ["forward", "grad_input", "grad_weight"]
    assert not any(w.stored for ws in sites.workloads.values() for w in ws)


def test_a_frozen_weight_and_an_image_that_learns() -> None:
    model = Net().train()
    model.first.requires_grad_(False)
    sites = profile(model, image().requires_grad_(), linked=True)
    assert list(by_direction(sites, "first")) == ["forward", "grad_input"]


def test_without_gradients_only_the_forward_counts() -> None:
    model = Net().train()
    survey = survey_of(model, linked=True)
    sites = survey_run(model, survey, Run(model, Work((image(),))), False, GROWTH)
    assert {w.direction for ws in sites.workloads.values() for w in ws} == {"forward"}


def test_calls_of_a_graph_have_the_names_of_its_nodes() -> None:
    sites = profile(symbolic_trace(Net().eval()), image())
    assert list(sites.workloads) == ["first", "inner.1", "conv2d"]
    [call] = sites.workloads["conv2d"]
    assert (call.input_shape, call.output_shape) == ((2, 32, 5, 3), (2, 32, 5, 3))
    assert call.spec.padding == ((1, 1), (1, 1))


def test_a_graph_in_a_module() -> None:
    model = nn.Sequential(symbolic_trace(Net().train()), nn.ReLU())
    sites = profile(model, image(), linked=True)
    assert list(sites.workloads) == ["0.first", "0.inner.1", "0.conv2d"]
    assert len(sites.workloads["0.conv2d"]) == 3


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_an_exported_program() -> None:
    net = Net().eval()
    del net.never
    sites = profile(torch.export.export(net, (image(),)), image(batch=3))
    assert [w.input_shape[1:] for [w] in sites.workloads.values()] == [
        (16, 10, 10), (32, 10, 10), (32, 5, 3),
    ]  # fmt: skip
    assert not sites.left


@pytest.mark.parametrize("on", [False, True])
def test_under_autocast_the_type_is_that_of_the_convolution(on: bool) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, groups=16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                return self.conv(x)

    [workload] = profile(Cast().eval(), image()).workloads["conv"]
    assert workload.spec.dtype == ("bfloat16" if on else "float32")


def test_tf32_is_a_matter_of_a_gpu_and_of_float32() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16)).eval()
    [workload] = profile(model, image(), gpu=True).workloads["0"]
    assert workload.tf32
    [workload] = profile(model.double(), image().double(), gpu=True).workloads["0"]
    assert not workload.tf32


LAYOUTS = {
    "nothing": ("nchw", False, False),
    "the image": ("channels_last", True, False),
    "the model": ("channels_last", False, True),
    "both": ("channels_last", True, True),
}


@pytest.mark.parametrize(("layout", "x", "weight"), LAYOUTS.values(), ids=LAYOUTS)
def test_layout(layout: str, x: bool, weight: bool) -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16)).eval()
    given = image()
    if x:
        given = given.to(memory_format=torch.channels_last)
    if weight:
        model = model.to(memory_format=torch.channels_last)
    [workload] = profile(model, given).workloads["0"]
    assert workload.layout == layout


RANKS = {
    "1-D": (nn.Conv1d(16, 16, 5, padding="same", groups=16), (2, 16, 9), (2, 16, 9)),
    "1-D, no batch": (nn.Conv1d(16, 16, 4, padding="same", groups=16), (16, 9), (1, 16, 9)),
    "3-D": (nn.Conv3d(16, 16, 3, groups=16), (2, 16, 5, 6, 7), (2, 16, 3, 4, 5)),
    "transposed": (
        nn.ConvTranspose2d(16, 32, 3, 2, 1, output_padding=1, groups=16), (2, 16, 5, 6),
        (2, 32, 10, 12),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("module", "given", "expected"), RANKS.values(), ids=RANKS)
def test_ranks(module: nn.Module, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    [workload] = profile(nn.Sequential(module).eval(), torch.randn(given)).workloads["0"]
    assert workload.output_shape == expected
    assert len(module(torch.randn(given)).shape) == len(given)


def test_a_module_that_runs_twice_is_weighed_at_its_largest_input() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = self.alias = nn.Conv2d(16, 16, 3, groups=16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x[..., :5]).sum() + self.alias(x).sum() + self.conv(x[..., 2:]).sum()

    sites = profile(Twice().train(), image(), linked=True)
    assert {w.input_shape for w in sites.workloads["conv"]} == {(2, 16, 10, 10)}


def test_a_type_of_which_no_form_is_weighed() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16, dtype=torch.complex64)).eval()
    assert not profile(model, image().to(torch.complex64)).workloads
    empty = profile(nn.Sequential(nn.Conv2d(16, 16, 3, groups=16)).eval(), image(batch=0))
    assert empty.left["0"].code == "not-weighed"


def test_values_that_dynamo_noted() -> None:
    """Nothing runs; a dynamic length is the one that it had."""
    found: list[Sites] = []

    def backend(graph: Any, _: Any) -> Any:
        found.append(survey_notes(graph, survey_of(graph, linked=True), False, GROWTH))
        return graph.forward

    net = Net().train()
    torch._dynamo.reset()
    torch.compile(net, backend=backend, dynamic=True)(image())
    torch._dynamo.reset()
    [sites] = found
    shapes = [workloads[0].input_shape for workloads in sites.workloads.values()]
    assert shapes == [(2, 16, 10, 10), (2, 32, 10, 10), (2, 32, 5, 3)]
    assert [len(workloads) for workloads in sites.workloads.values()] == [2, 3, 3]
