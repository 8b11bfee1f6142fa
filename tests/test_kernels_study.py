"""The study of our kernels: what it times, that it refuses wrong results, what its tables say."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.errors import TritonError

from benchmarks import _kernels_report, _layers_calls, _layers_measure, _paper, _results, kernels
from benchmarks import _records as records
from benchmarks._kernels_cases import Case
from benchmarks._kernels_network import networks
from benchmarks._kernels_report import Report
from benchmarks._layers_clock import Effort, ProcessorClock
from benchmarks._layers_measure import Bench, Entry, measure
from benchmarks._layers_shapes import Layer, load
from benchmarks._layers_work import Group, Kernels, Way, ways
from benchmarks._records import Results
from benchmarks.layers import SMALL, facts
from dwr_rewrite.workload import DIRECTIONS, Direction

ROOT = Path(kernels.__file__).parents[1]
CPU = torch.device("cpu")
ONE_TILE = Kernels(132, 1)


TINY = kernels.TINY[0]
"""Triton's interpreter takes a good part of a second for a call."""

ONCE = Effort((1, 1), 0.0, (1e-9, 1e-9), warm=1, slowest=60, operands=1)


def group(layer: Layer = TINY, direction: Direction = "forward", **changes: Any) -> Group:
    return replace(Group(layer, 1, "fp32", direction, kernels=ONE_TILE), **changes)


def measured(asked: Group) -> dict[str, Entry]:
    entries = measure(asked, Bench(CPU, ProcessorClock(), ONCE, {}, math.inf))
    return {entry["way"]: entry for entry in entries}


@pytest.fixture
def aten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are quick."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


# What is timed


def test_kernels_are_timed_as_they_come_and_in_other_tiles() -> None:
    found = {way: other for way, other in ways(group(kernels=Kernels(132, 8))).items()
             if way.is_kernel and way.layout == "nchw"}  # fmt: skip
    own, named, *others = found
    assert own.tile == "" and found[named] == own  # timed once
    assert all(way.tile and found[way] is None for way in others)
    compiled = [way.form for way in ways(group(compiled=True)) if way.is_kernel]
    assert compiled == ["kernel", "kernel"]  # a layout each
    assert not any(way.is_kernel for way in ways(group(kernels=None)))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_kernel_is_right_before_it_is_timed(direction: Direction) -> None:
    """By Triton's interpreter here."""
    found = measured(group(direction=direction))
    ours = {name: entry for name, entry in found.items() if " kernel" in name}
    assert {entry["backend"] for entry in ours.values() if entry["status"] == "timed"} == {
        "Triton's interpreter"
    }
    for entry in ours.values():
        if entry["status"] != "same":
            assert entry["error"] <= 1 and entry["first_s"] > 0 and entry["us"]


@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.key)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_kernel_by_aten_is_right_too(aten: None, layer: Layer, direction: Direction) -> None:
    found = measured(group(layer, direction))
    for name, entry in found.items():
        one_axis = len(layer.kernel) == 1 and name.startswith("channels_last")
        if " kernel" in name and entry["status"] != "same":
            assert entry["status"] == "unsupported" if one_axis else entry["error"] <= 1


def half_written(call: Any) -> Any:
    """A kernel that leaves a quarter of its output as the memory was."""

    def run(i: int) -> torch.Tensor:
        right = call(i)
        found = torch.full_like(right, math.nan)
        found.view(-1)[right.numel() // 4 :] = right.reshape(-1)[right.numel() // 4 :]
        return found

    return run


def fail(error: Exception) -> Any:
    def run(i: int) -> torch.Tensor:
        raise error

    return run


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda call: lambda i: call(i) * 1.001, "wrong"),
        (half_written, "wrong"),
        (lambda call: lambda i: call(i)[:, :-1], "wrong"),
        (lambda call: fail(TritonError("no such layout")), "failed"),
        (lambda call: fail(torch.OutOfMemoryError("no room")), "out of memory"),
    ],
    ids=["a product off", "half written", "another shape", "does not compile", "no memory"],
)
def test_a_kernel_that_fails_is_never_timed(
    aten: None, monkeypatch: pytest.MonkeyPatch, spoil: Any, status: str
) -> None:
    honest = _layers_measure.call_of

    def call_of(asked: Group, way: Way, *given: Any) -> Any:
        call = honest(asked, way, *given)
        return spoil(call) if way.form == "kernel" else call

    monkeypatch.setattr(_layers_measure, "call_of", call_of)
    found = measured(group())
    entry = found["nchw kernel default"]
    assert entry["status"] == status and "us" not in entry and entry["reason"]
    assert found["nchw keep default"]["status"] == "timed"


def test_without_triton_the_kernels_are_aten(aten: None) -> None:
    assert _layers_calls.runs_by(CPU) == "aten"
    assert measured(group())["nchw kernel default"]["status"] == "timed"


def test_layers_are_chosen_by_key_set_or_example() -> None:
    def found(text: str) -> list[Layer]:
        return kernels.matching(load(), kernels.pattern(text))

    assert len(found("paper-mobilenet-v1")) == 9
    assert {layer.kernel for layer in found("k7x7 s1")} == {(7, 7)}
    assert [layer.channels for layer in found("x3d res2")] == [54]
    assert found("no such layer") == []


# Tables


def run_record(**device: Any) -> dict[str, Any]:
    named = {"name": "a GPU", "label": "", "torch": "2", "l2_bytes": 50e6, **device}
    return {
        "record": "run", "schema": records.SCHEMA, "study": "kernels", "device": named,
        "state": {}, "clock": "none", "date": "", "command": ["x"], "kernels": "Triton",
        "rates": {"copy": 4e12, "fp32": 5e13, "bf16": 6e14},
    }  # fmt: skip


def steady(us: float) -> list[float]:
    """Of twelve rounds, which a verdict takes."""
    return [us, us * 1.01, us * 0.99, us] * 6


def record(asked: Group, times: dict[str, float]) -> dict[str, Any]:
    entries: list[Entry] = []
    for name, us in times.items():
        layout, form, setting = name.split()
        way = Way(layout, form, setting=setting)  # type: ignore[arg-type]
        entry = _layers_measure._entry(way)
        entries.append({**entry, "first_s": 1.5, "status": "timed", "us": steady(us)})
    return {"record": "group", "key": asked.key, **facts(asked), "seconds": 1.0,
            "entries": entries}  # fmt: skip


def report(*found: dict[str, Any]) -> Report:
    return Report(Results([run_record()], {each["key"]: each for each in found}))


LARGE = Layer(128, (3, 3), (56, 56), (1, 1), (1, 1), (1, 1))
TILE = "fma.c1.p128.d1.r4.v2.w4.s1"
TIMES = {"nchw keep default": 400.0, "channels_last keep benchmark": 200.0,
         "nchw dense benchmark": 10.0, "nchw kernel default": 80.0,
         f"nchw kernel:{TILE} default": 50.0, "channels_last kernel default": 100.0}  # fmt: skip


def large(direction: Direction = "forward", layer: Layer = LARGE, **changes: Any) -> Group:
    return group(layer, direction, batch=64, dtype="bf16", **changes)


def only(found: Report) -> Case:
    (case,) = found.cases
    return case


def test_a_case_is_held_against_the_best_free_setting() -> None:
    case = only(report(record(large(), TIMES)))
    assert (case.own.us, case.own.layout) == (80.0, "nchw")
    assert (case.best.us, case.best.tile) == (50.0, TILE)
    assert case.free == ("channels_last keep benchmark", 200.0)  # a form is no free setting
    assert (case.over_default, case.own_over_default) == (8.0, 5.0)
    assert (case.over_free, case.own_over_free) == (4.0, 2.5)


def test_what_torch_compile_makes_is_free_too() -> None:
    compiled = {"nchw keep default": 500.0, "nchw keep max-autotune": 100.0,
                "nchw kernel default": 90.0}  # fmt: skip
    case = only(report(record(large(), TIMES), record(large(compiled=True), compiled)))
    assert case.free == ("nchw keep max-autotune", pytest.approx(80.0))  # a fifth of its default
    assert case.over_free == pytest.approx(1.6)


def test_bytes_are_counted_once() -> None:
    """An input and an output of 2 bytes an element, and 9 weights for every channel."""
    case = only(report(record(large(), TIMES)))
    size = 2 * (2 * 64 * 128 * 56 * 56 + 9 * 128)
    assert (case.bytes, case.flops) == (size, 2 * 9 * 64 * 128 * 56 * 56)
    assert case.of_copy == pytest.approx(size / 50e-6 / 4e12)
    assert case.own_of_copy == pytest.approx(size / 80e-6 / 4e12)
    assert case.large and case.bound == ("bytes", pytest.approx(size / 4e12 * 1e6))


def test_a_large_kernel_is_bound_by_its_flops() -> None:
    asked = group(replace(LARGE, kernel=(31, 31), padding=(15, 15)), batch=64)
    case = only(report(record(asked, TIMES)))
    assert case.bound == ("flops", pytest.approx(case.flops / 5e13 * 1e6))
    assert report(record(asked, TIMES)).targeted == []


@pytest.mark.parametrize(
    ("us", "told"),
    [(29.0, "1 of 1; median 89%, worst 89%"), (60.0, "0 of 1; median 43%")],
    ids=["reached", "missed"],
)
def test_targets_of_the_bandwidth(us: float, told: str) -> None:
    times = TIMES | {f"nchw kernel:{TILE} default": us}
    shown = _kernels_report.targets(report(record(large(), times)))
    forward, grad_input, *_ = shown.splitlines()[2:]
    assert told in forward and "85% of copy" in forward
    assert "not measured" in grad_input


@pytest.mark.parametrize(
    ("free", "slower"), [(49.0, 1), (49.9, 0), (60.0, 0)], ids=["yes", "hardly", "no"]
)
def test_slower_than_a_free_setting_is_counted(free: float, slower: int) -> None:
    times = TIMES | {"channels_last keep benchmark": free}
    found = report(record(large(), times))
    assert f"| none | {slower} of 1 |" in _kernels_report.targets(found)
    assert f" {slower} | 1 |" in _kernels_report.by_direction(found).splitlines()[2]


def mobilenet(default: float, own: float, **left: Any) -> Results:
    found = [
        record(Group(layer, 64, "bf16", direction), {
            "nchw keep default": default, "nchw kernel default": own,
            f"nchw kernel:{TILE} default": own / 2, "channels_last kernel default": 0.1,
        })
        for layer in _paper.layers(224) for direction in DIRECTIONS
    ]  # fmt: skip
    return Results([run_record()], {each["key"]: each for each in found if each["key"] not in left})


def test_the_layers_of_mobilenet_are_added_up() -> None:
    bf16, fp32 = networks(mobilenet(60.0, 20.0))
    assert (bf16.measured, bf16.groups) == (39, 39)
    assert bf16.told == "own tiles 3.00 [3.00, 3.00], best tiles 6.00 [6.00, 6.00]"
    assert fp32.told == "not measured (0 of 39 convolutions)"


def test_a_sum_that_lacks_a_layer_is_not_told() -> None:
    gone = Group(_paper.layers(224)[3], 64, "bf16", "grad_weight").key
    bf16, _ = networks(mobilenet(60.0, 20.0, **{gone: None}))
    assert bf16.told.startswith("not measured (") and bf16.best is None


def test_the_worst_come_first_with_their_bound() -> None:
    layers = [replace(LARGE, channels=c) for c in (128, 192, 256, 320, 384, 448)]
    found = report(*(record(large(layer=layer), TIMES) for layer in layers))
    rows = _kernels_report.worst(found).splitlines()[4:]
    assert len(rows) == 5
    assert layers[0].key in rows[0] and "| bytes |" in rows[0]  # the fewest bytes in the same time
    assert not any(layers[-1].key in row for row in rows)


def test_merged_files_hold_all_layers_and_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    for each in (run_record(), record(large(), TIMES), record(large("grad_weight"), TIMES)):
        records.append(path, each)
    shown = kernels.merge([path], tmp_path)
    assert "The kernels are run by Triton." in shown and "## Layers" not in shown
    whole = (tmp_path / "kernels.md").read_text()
    line = f"| {LARGE.key} | bf16 | 64 | grad_weight | 400 | channels_last benchmark 200 | 80 | 50 "
    assert f"{line}| nchw {TILE} |" in whole
    assert len(_results.load(tmp_path / "kernels.json").groups) == 2


# Commands


def test_quick_measures_everything_and_keeps_nothing() -> None:
    folder = ROOT / "benchmarks" / "results"
    before = sorted(folder.rglob("*"))
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", "--quick"], cwd=ROOT, capture_output=True,
        text=True, check=False, env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "all done: 19 groups measured, 0 left" in shown.stdout
    if not torch.cuda.is_available():
        assert "The kernels are run by aten." in shown.stdout
        assert "(a CPU, not the target)" in shown.stdout
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layers", "(", "--out", "x"], "'(' is no regular expression"),
        (["--dtypes", "fp8", "--out", "x"], "invalid choice: 'fp8'"),
        ([], "--out FILE is needed"),
    ],
)
def test_bad_usage_is_one_sentence(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels", *arguments])
    with pytest.raises(SystemExit) as ended:
        kernels.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
