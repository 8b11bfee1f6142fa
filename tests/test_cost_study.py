"""The study that fits the cost model to the layer study's results."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import _results, _run, fit_cost, layers
from benchmarks._layers_shapes import Layer, load
from benchmarks._layers_work import Group, ways
from benchmarks._records import SCHEMA, DamagedError, Results
from dwr_rewrite.cost import Model, Target, find_target
from dwr_rewrite.cost.efficiency import Efficiency, Factors, Key, kind_of
from dwr_rewrite.cost.errors import distinct
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.workload import DIRECTIONS, Workload

TRUTH = {
    Key("keep"): Factors(0.6, 0.2, 3e-6),
    Key("blocks"): Factors(0.7, 0.3, 5e-6),
    Key("dense"): Factors(0.8, 0.5, 4e-6),
}
WORLD = Model(find_target("H200"), Efficiency(TRUTH))
LAYERS = load()[:6]


def results(device: dict[str, object], world: Model, layers: Sequence[Layer]) -> Results:
    """A result file of the layer study with the times of a model: every way of every group."""
    run = {
        "record": "run", "schema": SCHEMA, "study": "layers", "state": {}, "clock": "a model",
        "date": "2000-01-01T00:00:00+00:00", "command": [], "device": device,
        "rates": {"copy": 1e11, "fp32": 1e12, "bf16": 4e12},
    }  # fmt: skip
    found = Results()
    found.take(run, "made")
    for layer in layers:
        for direction in DIRECTIONS:
            for batch in (1, 64):
                for compiled in (False, True):
                    group = Group(layer, batch, "bf16", direction, compiled)
                    found.take(record_of(group, world), group.key)
    return found


def record_of(group: Group, world: Model) -> dict[str, object]:
    """Settings of the depthwise form take 2 or 3 times its time, by hand or compiled it takes 1."""
    spec, entries = replace(group.layer.spec, dtype="bfloat16"), []
    slower = {"default": 2, "benchmark": 3, "cudnn": 1, "compile": 1, "max-autotune": 1}
    for way, other in ways(group).items():
        entry: dict[str, object] = {"way": way.name, **asdict(way)}
        entry |= {"status": "same", "same_as": other.name} if other else {"status": "timed"}
        if other is None:
            stored = way.precomputed and group.direction == "forward"
            workload = Workload(spec, group.batch, group.direction, way.layout, stored=stored)
            seconds = world.seconds(workload, diagonal(spec, way.width))
            scale = slower[way.setting] if way.form == "keep" else 1
            entry["us"] = [1e6 * seconds * scale] * 2
            entry |= {"how": "operator"} if way.setting == "cudnn" else {}
        entries.append(entry)
    named = {"record": "group", "key": group.key, "seconds": 1.0, "entries": entries}
    return {**named, **layers.facts(group)}


DEVICE = {"name": "NVIDIA H200", "multiprocessors": 132, "l2_bytes": 62914560, "label": "",
          "torch": "2.13.0", "cudnn": 91900, "cuda": "13.0", "driver": "580"}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "layers.json"
    path.write_text(_results.as_json(results(DEVICE, WORLD, LAYERS)))
    return path


def test_results_become_cases(file: Path):
    found = fit_cost.cases(_results.load(file))
    # A layer has 2 batches in 2 layouts (1-D: one would do), the forward stored and not.
    assert len(found) == 6 * 2 * 2 * 4
    for case in found:
        for recipe, seconds in case.times.items():
            free = 2 if recipe == case.kept else 1  # the fastest setting, not the one by hand
            expected = free * WORLD.seconds(case.workload, recipe)
            assert seconds == pytest.approx(expected, rel=1e-9)
        assert len(case.times) > 1
    # The depthwise forward is in two cases, and is one time.
    doubled = sum(case.workload.direction == "forward" for case in found) // 2
    assert len(distinct(found)) == sum(len(case.times) for case in found) - doubled


def test_all_tiles_of_a_kernel_are_one_form(file: Path):
    found = _results.load(file)
    [first, *_] = (g for g in found.groups.values() if not g["compiled"])
    kept = next(e for e in first["entries"] if e["form"] == "keep" and e["status"] == "timed")
    tiles = ("", ":fma.c1.p128.d1.r4.v2.w4.s1", ":fma.c8.p16.d1.r1.v1.w4.s1")
    for tile, us in zip(tiles, (5.0, 3.0, 4.0), strict=True):
        first["entries"].append({**kept, "way": tile, "form": f"kernel{tile}", "us": [us, us]})
    plain = fit_cost.cases(_results.load(file))
    for case, before in zip(fit_cost.cases(found), plain, strict=True):
        ours = [recipe for recipe in case.times if kind_of(recipe) == "kernel"]
        assert {r: t for r, t in case.times.items() if r not in ours} == before.times
        assert [case.times[recipe] for recipe in ours] in ([], [pytest.approx(3e-6)])
        assert kind_of(case.kept) == "keep"
    counts = [[len(case.times) for case in each] for each in (fit_cost.cases(found), plain)]
    assert sum(counts[0]) > sum(counts[1])


def test_the_study_writes_what_load_model_reads(file: Path, tmp_path: Path):
    told, found = fit_cost.study([file])
    assert "# Cost model of NVIDIA H200 (SXM, 141 GB)" in told
    assert "| error, 90 % within |" in told
    assert found["H200"].factors[Key("blocks")] == pytest.approx(TRUTH[Key("blocks")], rel=5e-3)
    source = found["H200"].sources[0]
    assert source["file"] == "layers.json"
    assert (source["torch"], source["driver"]) == ("2.13.0", "580")
    target = tmp_path / "efficiency.json"
    assert fit_cost.keep(found, target) == f"written: {target}"
    kept = Efficiency.from_dict(json.loads(target.read_text())["devices"]["H200"])
    assert kept == found["H200"]
    assert fit_cost.keep({}, target).endswith("nothing is written")


def test_an_unknown_device_is_judged_and_not_kept(tmp_path: Path):
    device = {**DEVICE, "name": "CPU Z", "label": "a CPU, not the target", "cores": 2}
    target = Target("CPU Z", "CPU Z", 1e11, 1 << 25, 2, {"float32": 1e12}, {"bfloat16": 4e12})
    path = tmp_path / "layers.json"
    path.write_text(_results.as_json(results(device, Model(target, WORLD.efficiency), LAYERS)))
    told, found = fit_cost.study([path])
    assert found == {}
    assert "CPU Z is not in targets.toml: its factors are not kept." in told


def test_a_real_run_is_read(tmp_path: Path):
    """What the study measures here, on a CPU; too little to fit."""
    groups = [Group(layer, 1, "fp32", "forward") for layer in layers.SMALL[:1]]
    layers.run(groups, tmp_path / "part.jsonl", math.inf, True, "0/1")
    folder = _results.write(_run.merge([tmp_path / "part.jsonl"]), "", tmp_path)
    told, found = fit_cost.study([folder / "layers.json"])
    assert found == {}
    assert "are too few to fit a model to" in told


def test_damage_is_told(tmp_path: Path):
    path = tmp_path / "layers.json"
    path.write_text("{")
    with pytest.raises(DamagedError, match="is no merged result"):
        fit_cost.study([path])


def test_without_results_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(_results, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["fit_cost"])
    fit_cost.main()
    assert capsys.readouterr().out.startswith("there is no benchmarks/results/<device>/layers.json")
