"""benchmarks.paper_table: the authors' form, and the tables with an injected clock."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import _paper, _paper_layers, _paper_report, _results, paper_table
from benchmarks._layers_clock import QUICK
from benchmarks._layers_operands import operands
from benchmarks._layers_shapes import Layer
from benchmarks._layers_work import Group, Way
from benchmarks._records import DamagedError
from benchmarks.paper_table import WAYS, Study
from dwr_rewrite.passes.fx.geometry import Forms
from dwr_rewrite.passes.fx.tune.whole import Run
from dwr_rewrite.workload import DIRECTIONS
from models import mobilenet_v1
from models.entry import is_depthwise
from tests.study_instruments import CPU, CountingClock, instruments

# The network


def test_layers_are_those_that_the_network_runs() -> None:
    model = mobilenet_v1.build(width=0.5, size=96)
    seen: list[Layer] = []

    def note(module: Any, args: tuple[torch.Tensor]) -> None:
        (x,) = args
        strides, spatial = module.stride, tuple(x.shape[2:])
        seen.append(Layer(x.shape[1], module.kernel_size, spatial, strides, (1, 1), (1, 1)))

    for module in model.modules():
        if is_depthwise(module):
            module.register_forward_pre_hook(note)
    model(torch.randn(1, 3, 96, 96))
    assert _paper.layers(96, 0.5) == seen and len(seen) == 13


def test_weights_are_as_many_as_the_research_counted() -> None:
    """44,640 compact and 1,428,480 in groups of 32: 32 times as many."""
    original = mobilenet_v1.build()
    compact = sum(m.weight.numel() for m in original.modules() if is_depthwise(m))
    dense = [m for m in _paper.as_published(original).modules() if isinstance(m, _paper.Masked)]
    assert (compact, sum(m.weight.numel() for m in dense), len(dense)) == (44_640, 1_428_480, 13)
    assert all(int(m.mask.sum()) == m.weight.shape[0] * 9 for m in dense)


def integers(*shape: int) -> torch.Tensor:
    """Sums of their products are exact, in whatever order."""
    return torch.randint(-4, 5, shape).double()


@pytest.mark.parametrize(("channels", "stride"), [(64, 1), (96, 2), (8, 1)])
def test_the_masked_parameter_is_the_depthwise_convolution(channels: int, stride: int) -> None:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False).double()
    conv.weight.data = integers(*conv.weight.shape)
    masked = _paper.Masked(conv)
    x = integers(2, channels, 8, 8).requires_grad_()
    expected, found = conv(x), masked(x)
    assert torch.equal(found, expected)
    gradient = integers(*expected.shape)
    theirs = torch.autograd.grad(expected, [x, conv.weight], gradient)
    ours = torch.autograd.grad(found, [x, masked.weight], gradient)
    assert torch.equal(ours[0], theirs[0])
    assert int((ours[1] * (1 - masked.mask)).count_nonzero()) == 0  # nothing else learns
    on_diagonal = ours[1].sum(1, keepdim=True)
    assert torch.equal(on_diagonal, theirs[1])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_is_timed_alone_is_what_autograd_runs(direction: Any) -> None:
    layer = Layer(64, (3, 3), (8, 8), (2, 2), (1, 1), (1, 1))
    group = Group(layer, 2, "fp32", direction)
    given = operands(group, "nchw", 1, CPU)
    conv = nn.Conv2d(64, 64, 3, 2, 1, groups=64, bias=False)
    conv.weight.data = given.weight
    masked = _paper.Masked(conv)
    found = _paper.call_of(group, given)(0)
    if direction == "forward":
        assert torch.equal(found, masked(given.x[0]))
        return
    x = torch.zeros_like(given.x[0]) if direction == "grad_input" else given.x[0]
    output = masked(x.requires_grad_())
    leaf = x if direction == "grad_input" else masked.weight
    assert torch.equal(found, torch.autograd.grad(output, leaf, given.gradient[0])[0])


# Measuring


def seconds_of_steps(index: int, run: Run) -> float:
    """Trials of a plan like it; the n-th step takes n ms."""
    if run.work.step is None:
        convs = [m for m in run.model.modules() if is_depthwise(m)]
        return 1.0 if any("Linked" in type(conv).__name__ for conv in convs) else 2.0
    return (index + 1) * 1e-3


def study(**changes: Any) -> Study:
    small = Study(
        CPU, CountingClock(), QUICK, batch=2, size=32, width=0.25, dtypes=("fp32",),
        instruments=instruments(seconds_of_steps),
    )  # fmt: skip
    return replace(small, **changes)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("paper")
    paper_table.measure(study(), folder / "paper.jsonl", math.inf)
    shown, fine = paper_table.merge([folder / "paper.jsonl"], folder)
    assert fine
    return folder, shown


def test_every_form_is_timed_in_every_part(merged: tuple[Path, str]) -> None:
    groups = _results.load(merged[0] / "paper_table.json").groups
    assert set(groups) == {"layers fp32", "step fp32"}
    step, alone = groups["step fp32"]["entries"], groups["layers fp32"]["entries"]
    assert [entry["way"] for entry in step] == [way.name for way in WAYS]
    assert [entry["way"] for entry in alone] == [
        f"{way.name} {direction}" for direction in DIRECTIONS for way in WAYS
    ]
    assert {entry["status"] for entry in (*step, *alone)} == {"timed"}


def test_state_is_as_large_as_each_form_keeps_it(merged: tuple[Path, str]) -> None:
    """Weight, momentum and mask of the masked form; ours keeps what the original has."""
    entries = _results.load(merged[0] / "paper_table.json").groups["step fp32"]["entries"]
    state = {entry["form"]: entry["state_bytes"] for entry in entries}
    assert state["keep"] == state["blocks:32"] == state["plan"]
    layers = _paper.layers(32, 0.25)
    compact = sum(9 * layer.channels for layer in layers)
    width = {layer: layer.channels // _paper.groups_of(layer.channels) for layer in layers}
    dense = sum(9 * layer.channels * width[layer] for layer in layers)
    assert state["paper"] - state["keep"] == 4 * (3 * dense - 2 * compact)


def test_the_plan_is_what_was_measured_to_be_fastest(merged: tuple[Path, str]) -> None:
    groups = _results.load(merged[0] / "paper_table.json").groups
    entry = next(e for e in groups["step fp32"]["entries"] if e["form"] == "plan")
    first, *others = entry["widths"].values()
    assert first == [1, 1, 1]  # of 8 channels, whose only other form is dense
    assert others == [[8, 8, 8]] * 12 and entry["plan"]["sites"] == 12


def test_the_tables_hold_what_the_clock_told(merged: tuple[Path, str]) -> None:
    """The n-th step took n ms; the n-th row of layers n us, directions one after the other."""
    shown = merged[1]
    assert "| arXiv:1803.09926, PyTorch of its day |  |  | 5.4 |" in shown
    position = WAYS.index(Way("nchw", "blocks:32", setting="benchmark"))
    rows = [(position + 1 + part * len(WAYS)) / 1e3 for part in range(3)]
    base = [(1 + part * len(WAYS)) / 1e3 for part in range(3)]
    alone = " | ".join(f"{each:.3f}" for each in (*rows, sum(rows)))
    gain, whole = sum(base) / sum(rows), 1 / (position + 1)
    expected = (
        f"| nchw | blocks:32, linked | benchmark | {alone} | {gain:.2f} [{gain:.2f}, {gain:.2f}] "
        f"| {position + 1:.2f} | {whole:.2f} [{whole:.2f}, {whole:.2f}] |  |"
    )
    assert expected in shown
    assert f"| blocks:32, linked | fp32 | nchw | {whole:.2f} [{whole:.2f}, {whole:.2f}] |" in shown
    assert {path.suffix for path in merged[0].iterdir()} >= {".json", ".md", ".png"}


def test_a_form_that_computes_something_else_is_never_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = _paper.call_of

    def call_of(group: Group, given: Any) -> Any:
        call = honest(group, given)
        return lambda i: call(i) * 1.001

    monkeypatch.setattr(_paper, "call_of", call_of)
    layers = _paper.layers(16, 0.25)[:2]
    ways = {Way("nchw"): [Forms()] * 2, Way("nchw", "paper"): [Forms()] * 2}
    entries = _paper_layers.measure(layers, 2, "fp32", ways, CPU, CountingClock(), QUICK)
    assert [entry["status"] for entry in entries] == ["timed", "wrong"] * 3
    assert all("us" not in entry for entry in entries if entry["form"] == "paper")


def test_a_step_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: nn.Module) -> nn.Module:
        raise torch.OutOfMemoryError("no room for the mask")

    monkeypatch.setattr(_paper, "as_published", full)
    entries = study().steps("fp32")
    refused = [entry for entry in entries if entry["form"] == "paper"]
    assert [(e["status"], e["reason"]) for e in refused] == [
        ("out of memory", "no room for the mask")
    ] * 2
    assert {e["status"] for e in entries if e["form"] != "paper"} == {"timed"}


def test_a_timing_that_fails_leaves_no_times() -> None:
    def fail(index: int, run: Run) -> float:
        if run.work.step is not None:
            raise RuntimeError("the device stumbled")
        return 2.0

    entries = study(instruments=instruments(fail)).steps("fp32")
    assert {(e["status"], e["reason"]) for e in entries} == {("failed", "the device stumbled")}


# Files


def test_a_damaged_file_is_refused(merged: tuple[Path, str], tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (merged[0] / "paper.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line.get("part") == "step")
    step["entries"][0]["us"] = step["entries"][0]["us"][:-1]
    path = tmp_path / "torn.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DamagedError, match="different numbers of samples"):
        paper_table.merge([path], tmp_path)
    results = _results.load(merged[0] / "paper_table.json")
    results.runs[0]["study"] = "models"
    with pytest.raises(DamagedError, match="results of models, not of paper_table"):
        _paper_report.table(results)
