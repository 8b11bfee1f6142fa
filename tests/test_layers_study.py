"""The layer study: its arithmetic, the order and sharing of its work, files and verdicts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import _layers_calls, _layers_measure, _results, layers, roofline
from benchmarks import _records as records
from benchmarks._layers_check import WrongError, reference
from benchmarks._layers_clock import QUICK, Effort, ProcessorClock, interleave, warm
from benchmarks._layers_measure import Bench, Entry, measure
from benchmarks._layers_operands import Operands, operands
from benchmarks._layers_shapes import Layer, load
from benchmarks._layers_summary import EITHER, Row, geometric_mean, rows
from benchmarks._layers_work import DTYPES, Group, Way, order_of_work, shard, ways
from benchmarks._records import DamagedError, Results
from benchmarks._roofline_points import DEFAULT as DEFAULT_ROLE
from benchmarks._roofline_points import REWRITTEN
from benchmarks._run import DeviceLostError, TimeIsUpError
from dwr_rewrite.passes.fx.functional import convolve
from dwr_rewrite.passes.fx.geometry import Forms
from dwr_rewrite.workload import DIRECTIONS, Direction

ROOT = Path(layers.__file__).parents[1]
CPU = torch.device("cpu")
PLAIN, MULTIPLIED, TRANSPOSED = layers.SMALL


def bench(effort: Effort = QUICK, deadline: float = math.inf, **rates: float) -> Bench:
    return Bench(CPU, ProcessorClock(), effort, rates, deadline)


def group(layer: Layer = PLAIN, direction: Direction = "forward", **changes: Any) -> Group:
    return replace(Group(layer, 1, "fp32", direction), **changes)


# Shapes


@pytest.mark.parametrize("layer", layers.SMALL, ids=lambda layer: layer.key)
@pytest.mark.parametrize("width", [1, 4])
def test_flops_are_two_for_each_product(layer: Layer, width: int) -> None:
    """Products of a convolution of ones without padding's zeros left out: counted by summing."""
    weight = torch.ones(layer.spec.weight_shape)
    moved = replace(layer, padding=(0,) * len(layer.kernel)) if layer.transposed else layer
    x = torch.ones(layer.input_shape(2))
    outputs = convolve(x, weight, None, moved.geometry, Forms())
    assert tuple(outputs.shape) == layer.output_shape(2)
    window = math.prod(layer.kernel)
    products = x.numel() if layer.transposed else outputs.numel()
    assert layer.flops(2, width) == 2 * width * window * products


def test_elements_are_those_of_the_tensors() -> None:
    x, y, weight = 3 * 12 * 9 * 9, 3 * 24 * 5 * 5, 24 * 25
    assert MULTIPLIED.elements(3) == x + y + weight
    assert MULTIPLIED.elements(3, width=4) == x + y + 4 * weight


@pytest.mark.parametrize(
    ("layer", "direction", "terms"),
    [
        (PLAIN, "forward", 9), (PLAIN, "grad_input", 9), (PLAIN, "grad_weight", 2 * 64),
        (MULTIPLIED, "forward", 25), (MULTIPLIED, "grad_input", 50),
        (MULTIPLIED, "grad_weight", 2 * 25), (TRANSPOSED, "grad_weight", 2 * 20),
    ],
)  # fmt: skip
def test_terms(layer: Layer, direction: Direction, terms: int) -> None:
    assert layer.terms(2, direction) == terms


def test_every_layer_is_there_once_and_every_set_comes_early() -> None:
    found = load()
    assert len({layer.key for layer in found}) == len(found) == 69
    sets = {layer.sets[0] for layer in found}
    assert {layer.sets[0] for layer in found[: len(sets)]} == sets


# Work


def test_one_batch_and_two_dtypes_of_every_layer_come_first() -> None:
    work = order_of_work(load())
    first = work[: 69 * 2 * 3]
    assert {(g.batch, g.compiled) for g in first} == {(64, False)}
    assert {g.dtype for g in first} == {"bf16", "tf32"}
    assert len({g.layer.key for g in first}) == 69
    assert len({g.key for g in work}) == len(work) == 69 * 4 * 3 * 3 * 2


@pytest.mark.parametrize("parts", [1, 3, 26])
def test_shards_are_disjoint_and_complete(parts: int) -> None:
    work = order_of_work(load(), ["bf16"], [1])
    shared = [shard(work, part, parts) for part in range(parts)]
    assert sorted(g.key for part in shared for g in part) == sorted(g.key for g in work)
    assert shared[0] == shard(order_of_work(load(), ["bf16"], [1]), 0, parts)
    homes = [{g.layer.key for g in part} for part in shared]
    assert sum(map(len, homes)) == 69  # a layer is never torn apart
    assert max(map(len, homes)) - min(map(len, homes)) <= 1


def test_a_width_that_two_forms_share_is_timed_once() -> None:
    found = ways(group(MULTIPLIED))
    aliases = {way.name: other.name for way, other in found.items() if other is not None}
    assert aliases["nchw blocks:16 benchmark"] == "nchw dense benchmark"
    assert {way.width for way in found if way.form == "blocks:8"} == {6}
    assert len({way.name for way in found}) == len(found)


# Calls


class Recorded(TorchDispatchMode):
    """The operators that run, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "detach" not in func.name():
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layer", layers.SMALL, ids=lambda layer: layer.key)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("width", [1, 4])
def test_what_is_timed_is_what_the_product_runs(
    layer: Layer, direction: Direction, width: int
) -> None:
    given = operands(group(layer, direction), "nchw", 1, CPU)
    way = Way("nchw", "blocks:4", width, "benchmark")
    with Recorded() as ours, torch.no_grad():
        result = _layers_calls.call_of(group(layer, direction), way, given, 1)(0)
    leaf = (given.x[0], given.x[0], given.weight)[DIRECTIONS.index(direction)].requires_grad_()
    with Recorded() as theirs:
        expected = output = convolve(
            given.x[0], given.weight, given.bias, layer.geometry, Forms(**{direction: width})
        )
    if direction != "forward":
        with Recorded() as theirs:
            (expected,) = torch.autograd.grad(output, leaf, given.gradient[0])
    assert torch.equal(result, expected)
    assert ours.names == theirs.names


def test_operands_of_both_layouts_are_equal_and_laid_out_as_said() -> None:
    found = [
        operands(group(MULTIPLIED, "grad_weight"), layout, 3, CPU)
        for layout in ("nchw", "channels_last")
    ]
    for one, other in zip(*([*f.x, *f.gradient, f.weight] for f in found), strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous() and other.stride(1) == 1
    assert len(found[0].x) == 3 and not torch.equal(found[0].x[0], found[0].x[1])


# Correctness


def checked(direction: Direction, dtype: Any, layer: Layer = MULTIPLIED) -> tuple[Any, ...]:
    asked = group(layer, direction, dtype=dtype, batch=4)
    given = operands(asked, "nchw", 1, CPU)
    result = _layers_calls.call_of(asked, Way("nchw"), given, 1)(0)
    return asked, given, result, reference(asked, given)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_tolerance_covers_rounding_and_little_more(direction: Direction, dtype: Any) -> None:
    """Half of it is the result's own; the other covers what the yardstick itself is rounded by."""
    asked, given, result, allowed = checked(direction, dtype)
    exact = replace_dtype(given, torch.float64)
    truth = _layers_calls.call_of(asked, Way("nchw"), exact, 1)(0)
    assert bool(((result.double() - truth).abs() <= allowed.tolerance / 2).all())
    assert float((allowed.tolerance / truth.abs().mean()).max()) < 0.1


def replace_dtype(given: Operands, dtype: torch.dtype) -> Operands:
    tensors = ([each.to(dtype) for each in group] for group in (given.x, given.gradient))
    bias = None if given.bias is None else given.bias.to(dtype)
    return Operands(*tensors, given.weight.to(dtype), bias)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_wrong_result_is_refused(direction: Direction) -> None:
    _, _, result, allowed = checked(direction, "fp32")
    assert allowed.check(result) <= 0.5
    for spoil in (lambda t: t * 0, lambda t: t.fill_(math.nan)):
        wrong = result.clone()
        spoil_one(wrong, spoil)
        with pytest.raises(WrongError, match=r"1 of \d+ elements differ"):
            allowed.check(wrong)
    with pytest.raises(WrongError, match="shape"):
        allowed.check(result[:, :-1])


def spoil_one(tensor: torch.Tensor, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    flat = tensor.flatten()
    position = int(flat.abs().argmax())
    tensor.view(-1)[position] = spoil(flat[position].clone())


# Timing


@pytest.mark.parametrize(
    ("seconds", "rotation", "calls"),
    [(1e-5, 4, 50), (1e-5, 200, 200), (1e-3, 200, 5), (1.0, 200, 1)],
    ids=["too short", "the rotation", "too long", "one call"],
)
def test_calls_of_a_replay(seconds: float, rotation: int, calls: int) -> None:
    assert Effort().calls(seconds, rotation) == calls


@pytest.mark.parametrize(
    ("times", "expected"),
    [([9, 5, 3] + [2.0] * 20, (8, True)), ([2.0**n for n in range(40)], (30, False))],
    ids=["settles", "never settles"],
)
def test_warm(times: list[float], expected: tuple[int, bool]) -> None:
    left = iter(times)
    assert warm(lambda: next(left), 30) == expected


def test_interleave_turns_the_order_round() -> None:
    order: list[str] = []
    samplers = [lambda name=name: order.append(name) or 1.0 for name in "ABC"]
    assert interleave(samplers, 2) == [[1.0] * 4] * 3
    assert "".join(order) == "ABCCBAABCCBA"


# Groups


def by_name(entries: Sequence[Entry]) -> dict[str, Entry]:
    return {entry["way"]: entry for entry in entries}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_way_has_samples_or_a_reason(direction: Direction) -> None:
    entries = measure(group(MULTIPLIED, direction), bench())
    assert [entry["way"] for entry in entries] == [
        way.name for way in ways(group(MULTIPLIED, direction))
    ]
    for entry in entries:
        assert len(entry.get("us", [])) == (6 if entry["status"] == "timed" else 0)
        assert entry["status"] in ("timed", "same") or entry["reason"]
    assert by_name(entries)["nchw keep cudnn"]["reason"] == "cuDNN needs a CUDA device"


def test_what_does_not_exist_is_said() -> None:
    tf32 = measure(group(dtype="tf32"), bench())
    assert {entry.get("reason") for entry in tf32 if entry["status"] != "same"} == {
        "TF32 is a mode of CUDA devices"
    }
    flat = by_name(measure(group(TRANSPOSED), bench()))["channels_last keep default"]
    assert (flat["status"], "one spatial axis" in flat["reason"]) == ("unsupported", True)


def test_a_wrong_way_is_recorded_and_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _layers_measure.call_of

    def call_of(asked: Group, way: Way, given: Operands, rotated: int) -> Any:
        call = honest(asked, way, given, rotated)
        return (lambda i: call(i) * 1.001) if way.form == "dense" else call

    monkeypatch.setattr(_layers_measure, "call_of", call_of)
    entries = by_name(measure(group(), bench()))
    wrong = entries["nchw dense benchmark"]
    assert wrong["status"] == "wrong" and "us" not in wrong
    assert entries["nchw blocks:8 benchmark"]["status"] == "timed"


@pytest.mark.parametrize(
    ("error", "status"),
    [(torch.OutOfMemoryError("no room"), "out of memory"), (RuntimeError("no kernel"), "failed")],
)
def test_a_failure_is_recorded(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    honest = _layers_measure.call_of

    def call_of(asked: Group, way: Way, given: Operands, rotated: int) -> Any:
        if way.form == "dense":
            raise error
        return honest(asked, way, given, rotated)

    monkeypatch.setattr(_layers_measure, "call_of", call_of)
    entry = by_name(measure(group(), bench()))["nchw dense benchmark"]
    assert (entry["status"], entry["reason"]) == (status, str(error))


def test_a_failure_while_sampling_takes_all_times_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("the device stumbled")

    monkeypatch.setattr(_layers_measure, "interleave", fail)
    statuses = {entry["status"] for entry in measure(group(), bench())}
    assert statuses == {"failed", "same", "unsupported"}


def test_too_slow_by_arithmetic_and_by_the_clock() -> None:
    rate = group().layer.flops(1, 8) / QUICK.slowest  # of which dense needs twice as long
    entries = by_name(measure(group(), bench(fp32=rate)))
    assert "at least 10 s a call" in entries["nchw dense benchmark"]["reason"]
    assert entries["nchw blocks:8 benchmark"]["status"] == "timed"
    slow = by_name(measure(group(), bench(replace(QUICK, slowest=1e-9))))["nchw keep default"]
    assert slow["status"] == "too slow" and slow["reason"].startswith("one call took")


def test_a_group_stops_at_the_deadline() -> None:
    with pytest.raises(TimeIsUpError):
        measure(group(), bench(deadline=time.monotonic()))


# Files


def run_record(**device: Any) -> dict[str, Any]:
    named = {"name": "a GPU", "label": "", "torch": "2", "cudnn": 9, "cuda": "13", **device}
    return {
        "record": "run", "schema": records.SCHEMA, "study": "layers", "device": named, "state": {},
        "clock": "none", "date": "", "command": ["x"], "rates": {"copy": 1e12, "bf16": 1e14},
    }  # fmt: skip


def group_record(asked: Group, times: dict[str, list[float]]) -> dict[str, Any]:
    entries: list[Entry] = []
    for way, other in ways(asked).items():
        entry = _layers_measure._entry(way)
        if other is not None:
            entry |= {"status": "same", "same_as": other.name}
        elif way.name in times:
            entry |= {"status": "timed", "us": times[way.name]}
        else:
            entry |= {"status": "unsupported", "reason": "left out"}
        entries.append(entry)
    facts = layers.facts(asked)
    return {"record": "group", "key": asked.key, **facts, "seconds": 1.0, "entries": entries}


DEFAULT = {"nchw keep default": [2.0, 2.1, 1.9, 2.0]}


def results_file(path: Path, *found: dict[str, Any]) -> Path:
    for record in found:
        records.append(path, record)
    return path


def test_a_torn_last_line_is_passed_over_and_cut(tmp_path: Path) -> None:
    path = results_file(tmp_path / "a.jsonl", run_record(), group_record(group(), DEFAULT))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"record": "gro')
    assert list(records.read(path).groups) == [group().key]
    assert records.cut_torn_line(path) == 15
    assert path.read_bytes() == whole
    assert records.cut_torn_line(path) == 0


@pytest.mark.parametrize("content", ["a note", "", "first\nsecond"])
def test_another_file_is_never_cut(tmp_path: Path, content: str) -> None:
    path = tmp_path / "note.txt"
    path.write_text(content)
    with pytest.raises(DamagedError, match=r"holds no run|is not JSON"):
        records.cut_torn_line(path)
    assert path.read_text() == content


def spoiled(change: Callable[[Entry], object]) -> dict[str, Any]:
    record = group_record(group(), DEFAULT)
    change(record["entries"][0])
    return record


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{]", "line 2 is not JSON"),
        ('{"record": "group", "key": NaN}', "NaN is no number"),
        ("[1]", "neither a run nor a group"),
        ('{"record": "run", "schema": 7}', "schema 7"),
        ('{"record": "group", "key": "k"}', "the group lacks batch"),
        (spoiled(lambda e: e.update(us=[2.0, -1.0, 2.0])), "positive microseconds"),
        (spoiled(lambda e: e.update(us=[])), "positive microseconds"),
        (spoiled(lambda e: e.update(status="fine")), "status 'fine' is none of"),
        (spoiled(lambda e: e.update(status="wrong")), "a refused way has samples"),
        (
            group_record(group(), DEFAULT | {"nchw keep benchmark": [1.0, 1.0]}),
            "different numbers of samples",
        ),
        (spoiled(lambda e: e.update(us=[2.0, 2.0, 2.0])), "a round has 2 samples of each way"),
        (run_record() | {"study": "weather"}, "study 'weather' is none of layers"),
        (run_record() | {"study": "models"}, "of the study models, not layers"),
        ({k: v for k, v in run_record().items() if k != "rates"}, "the run lacks rates"),
        (run_record(torch="3"), "torch is '3', where the other runs have '2'"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, line: Any, said: str) -> None:
    path = results_file(tmp_path / "a.jsonl", run_record())
    with path.open("a") as file:
        file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(DamagedError, match=said) as caught:
        records.read(path)
    assert str(path) in str(caught.value)


def test_shards_are_merged(tmp_path: Path) -> None:
    one, other = group(), group(direction="grad_input")
    paths = [
        results_file(tmp_path / f"{i}.jsonl", run_record(), group_record(each, DEFAULT))
        for i, each in enumerate((one, other))
    ]
    shown = layers.merge(paths, tmp_path)
    assert "Groups: 2. Timed ways: 2." in shown
    merged = _results.load(tmp_path / "layers.json")
    assert set(merged.groups) == {one.key, other.key} and len(merged.runs) == 2
    entry = merged.groups[one.key]["entries"][0]
    assert entry["us"] == DEFAULT["nchw keep default"] and entry["median_us"] == 2.0
    with pytest.raises(DamagedError, match="is in another file too"):
        layers.merge([paths[0], paths[0]], tmp_path)


def test_shards_of_two_devices_are_not_merged(tmp_path: Path) -> None:
    paths = [
        results_file(tmp_path / f"{name}.jsonl", run_record(name=name), group_record(each, DEFAULT))
        for name, each in (("one", group()), ("other", group(direction="grad_input")))
    ]
    with pytest.raises(DamagedError, match="name is 'other', where the other runs have 'one'"):
        layers.merge(paths, tmp_path)


# Verdicts


def row(times: dict[str, list[float]], layout: str, *more: dict[str, Any]) -> Row:
    found = Results([run_record()], {})
    asked = group(dtype="bf16", direction="grad_input")
    for record in (group_record(asked, times), *more):
        found.groups[record["key"]] = record
    return next(each for each in rows(found) if each.layout == layout)


def steady(us: float) -> list[float]:
    """Of twelve rounds, which a verdict takes."""
    return [us, us * 1.01, us * 0.99, us] * 6


BASE = {"nchw keep default": steady(8), "nchw blocks:8 benchmark": steady(4)}


@pytest.mark.parametrize(
    ("more", "layout", "against_free", "wins"),
    [
        ({}, "nchw", 2.0, 1),
        ({"nchw keep benchmark": steady(2)}, "nchw", 0.5, 0),
        ({"nchw dense benchmark": steady(3)}, "nchw", 2.0, 0),
        ({"channels_last keep default": steady(2)}, "nchw", 2.0, 1),
        ({"channels_last keep default": steady(2)}, EITHER, 0.5, 0),
        ({"nchw keep default": [4.2, 4.4, 8, 3.5, 3.5, 3.9] * 4}, "nchw", 1.0125, 0),
    ],
    ids=["wins", "a setting is better", "another form is", "in this layout", "in either", "noise"],
)
def test_a_form_wins_only_if_no_setting_does(
    more: dict[str, list[float]], layout: str, against_free: float, wins: int
) -> None:
    found = row(BASE | more, layout)
    assert found.against_free("blocks:8")[0] == pytest.approx(against_free)
    assert found.wins("blocks:8") == wins


def test_torch_compile_is_a_free_setting() -> None:
    asked = group(dtype="bf16", direction="grad_input", compiled=True)
    times = {"nchw keep default": steady(10), "nchw keep compile": steady(4)}
    found = row(BASE, "nchw", group_record(asked, times))
    assert found.best_setting == ("nchw keep compile", pytest.approx(2.5))
    assert found.against_free("blocks:8")[0] == pytest.approx(0.8)
    assert found.wins("blocks:8") == 0 and found.per_layer == 1.0


def test_summaries() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    steadily = {"median_us": 3.0, "interval_us": [3.0, 3.0], "cv": 0.0}
    assert _results.summary(_results.timing({"us": [3.0] * 9})) == steadily
    noisy = _results.summary(_results.timing({"us": [1.0, 2.0, 3.0, 4.0, 100.0]}))
    assert noisy["interval_us"][0] < noisy["median_us"] == 3.0 < noisy["interval_us"][1]


# Runs


def measured(path: Path) -> list[str]:
    lines = map(json.loads, path.read_text().splitlines())
    return [line["key"] for line in lines if line["record"] == "group"]


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    work = order_of_work([PLAIN], ["fp32"], [1], compiled=False)
    assert layers.run(work, out, 0, True, "0/1").startswith("the time is up: 0 groups measured, 3")
    layers.run(work[:1], out, math.inf, True, "0/1")
    assert "all done: 2 groups measured, 0 left" in layers.run(work, out, math.inf, True, "0/1")
    assert measured(out) == [each.key for each in work]
    assert len(records.read(out).runs) == 3


def test_a_lost_device_ends_the_run_and_is_skipped_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "a.jsonl", order_of_work([PLAIN], ["fp32"], [1], compiled=False)

    def lost(*_: object) -> Any:
        found = [_layers_measure._entry(way) for way in ways(work[0])]
        found[1] |= {"status": "failed", "reason": "illegal access"}
        raise DeviceLostError(found)

    with monkeypatch.context() as patched:
        patched.setattr(layers, "measure", lost)
        assert "illegal access" in layers.run(work, out, math.inf, True, "0/1")
    assert measured(out) == [work[0].key]
    assert "2 groups measured, 0 left" in layers.run(work, out, math.inf, True, "0/1")


def test_quick_measures_everything_and_keeps_nothing() -> None:
    folder = ROOT / "benchmarks" / "results"
    before = sorted(folder.rglob("*"))
    command = [sys.executable, "-m", "benchmarks.layers", "--quick"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "all done: 37 groups measured, 0 left" in shown.stdout
    for dtype in set(DTYPES) - ({"tf32"} if not torch.cuda.is_available() else set()):
        assert f"| {dtype} | nchw | 1 | grad_weight |" in shown.stdout
    assert ("not the target" in shown.stdout) is not torch.cuda.is_available()
    assert " wrong" not in shown.stdout
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--out FILE is needed"),
        (["--shard", "4/4", "--out", "x"], "I/N with 0 <= I < N"),
        (["--merge", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--out", "README.md"], "README.md exists; add --resume"),
        (["--out", "README.md", "--resume"], "README.md, line 1 is not JSON"),
    ],
)
def test_bad_usage_is_one_sentence(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["layers", *arguments])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        layers.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_measuring_needs_torch_and_numpy_alone() -> None:
    code = (
        "import sys, benchmarks.layers; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'onnx', 'onnxruntime', 'rich', "
        "'matplotlib', 'typer', 'jinja2', 'jsonschema', 'ml_dtypes', 'onnx_graphsurgeon'}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           cwd=ROOT)  # fmt: skip
    assert shown.stdout.strip() == "[]"


# Roofline


def test_points_are_fractions_of_the_measured_ceilings() -> None:
    asked = group(dtype="bf16", batch=8)
    moved = PLAIN.elements(8) * 2
    at_half = [moved / 1e12 * 1e6 * 2]  # microseconds at half the copy bandwidth
    times = {"nchw keep default": at_half, "nchw dense benchmark": at_half}
    found = Results([run_record()], {asked.key: group_record(asked, times)})
    points = {point.role: point for point in roofline.points(found)}
    assert points[DEFAULT_ROLE].of_copy == pytest.approx(0.5)
    dense = points[REWRITTEN]
    assert dense.flops == 16 * PLAIN.flops(8)
    assert dense.of_matrix == pytest.approx(dense.flops / (at_half[0] / 1e6) / 1e14)


def test_quick_roofline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layers, "order_of_work", lambda *_, **__: [group(), group(TRANSPOSED)])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # this process goes on
    monkeypatch.setattr(sys, "argv", ["roofline", "--quick"])
    roofline.main()
    assert "| fp32 | 1 | forward | 2 |" in capsys.readouterr().out


def test_roofline_writes_table_points_and_plots(tmp_path: Path) -> None:
    asked = group(dtype="bf16", batch=8)
    found = Results([run_record()], {asked.key: group_record(asked, BASE)})
    shown = roofline.write(found, tmp_path)
    assert "Measured: copy 1 TB/s, bf16 100 Tflop/s" in shown
    assert {path.name for path in tmp_path.iterdir()} == {
        "roofline.json", "roofline.md", "roofline-batch-8.png"
    }  # fmt: skip
    with pytest.raises(DamagedError, match="no layer was timed"):
        roofline.write(Results([run_record()]), tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"runs": []}'])
def test_roofline_refuses_what_is_no_merged_result(tmp_path: Path, content: str) -> None:
    path = tmp_path / "layers.json"
    path.write_text(content)
    with pytest.raises(DamagedError, match="is no merged result"):
        _results.load(path)
