"""benchmarks.models: its work, its verdict with an injected clock, and what it cannot measure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import _models_onnx, _models_report, _results, models
from benchmarks._auto import remembering
from benchmarks._models_onnx import MissingError
from benchmarks._models_torch import Torch
from benchmarks._networks import BATCHES, NETWORKS, SMALL
from benchmarks._records import SCHEMA, DamagedError, Record, Results
from dwr_rewrite.passes.fx.tune.whole import Run
from dwr_rewrite.timing import Paired, Timing
from models.entry import Entry
from tests.study_instruments import CPU, SAMPLES, instruments, is_result

# Work


def test_every_network_is_run_everywhere_and_in_one_shard_only() -> None:
    nothing: Any = lambda asked: []  # noqa: E731
    found = models.tasks(NETWORKS, models.ENGINES, BATCHES, models.DTYPES, nothing, nothing)
    keys = [task.key for task in found]
    torch_groups, onnx_groups = 2 * 2 * (len(BATCHES) + 1), len(BATCHES)
    assert len(set(keys)) == len(keys) == len(NETWORKS) * (torch_groups + onnx_groups)
    assert {task.facts["network"] for task in found} == set(NETWORKS)
    parts = [keys[part::4] for part in range(4)]
    assert sorted(key for part in parts for key in part) == sorted(keys)


# Measuring


def measured(of_run: Any, folder: Path, network: Entry = SMALL["one block"]) -> tuple[str, bool]:
    """The whole study on a made-up device, merged into a folder; its table and verdict."""
    with_torch: Any = Torch(CPU, 1.0, 0.0, instruments(of_run))
    found = models.tasks(
        {"one": network}, ("torch eager",), (2,), ("tf32",), with_torch, with_torch
    )
    out = folder / "models.jsonl"
    models.run(found, CPU, out, math.inf, "0/1")
    return models.merge([out], folder)


FORMS = {
    "inference": "blocks:8",
    "training": "forward=blocks:8,grad_input=keep,grad_weight=blocks:8",  # the first layer
}


@pytest.mark.parametrize(
    ("rewritten", "fine"), [(1.0, True), (2.0, True), (2.02, True), (2.03, False), (4.0, False)]
)
def test_a_network_that_is_slower_fails_the_study(
    tmp_path: Path, rewritten: float, fine: bool
) -> None:
    """The trials of fx_rewrite like what it made; the study's own times have the last word.

    2.02 and 2.03 lie on both sides of 2 / 0.99.
    """

    def seconds(index: int, run: Run) -> float:
        if is_result(run):
            return rewritten
        return 1.0 if is_rewritten(run) else 2.0

    told, passed = measured(seconds, tmp_path)
    assert passed is fine
    assert ("SLOWER: one | torch eager | inference | 2 | tf32" in told) is not fine
    groups = _results.load(tmp_path / "models.json").groups.values()
    for group in groups:
        case = _models_report.case(group)
        assert case.gain is not None and case.sites == 1
        assert case.gain.median == pytest.approx(2.0 / rewritten)
        assert group["entries"][-1]["plan"]["forms"] == {"1": FORMS[group["mode"]]}


def is_rewritten(run: Run) -> bool:
    layer: Any = run.model[1]  # its only depthwise convolution
    return layer.groups != 16 or type(layer) is not nn.Conv2d


def test_a_network_that_is_kept_counts_as_itself(tmp_path: Path) -> None:
    told, fine = measured(lambda index, run: 2.0, tmp_path)
    assert fine and told.count("| 0 | kept |") == 2
    cases = [
        _models_report.case(g) for g in _results.load(tmp_path / "models.json").groups.values()
    ]
    assert [(case.gain, case.sites) for case in cases] == [(_models_report.KEPT, 0)] * 2


def test_a_network_that_does_not_run_is_told(tmp_path: Path) -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no kernel for this")

    broken = Entry("broken", lambda: Broken(2, 2), ((1, 4, 8, 8),), 0)
    told, fine = measured(lambda index, run: 1.0, tmp_path, broken)
    assert fine and "no kernel for this (2)" in told
    assert "| torch eager inference tf32 | 0 | 0 |  |  |  | 0 | 1 |" in told


def test_a_timing_that_fails_leaves_no_times(tmp_path: Path) -> None:
    def fail(index: int, run: Run) -> float:
        if is_result(run):
            raise RuntimeError("the device stumbled")
        return 1.0 if is_rewritten(run) else 2.0

    told, fine = measured(fail, tmp_path)
    assert fine and "failed: the device stumbled (2)" in told
    for group in _results.load(tmp_path / "models.json").groups.values():
        assert {entry["status"] for entry in group["entries"]} == {"failed"}


def test_what_was_measured_goes_beside_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.delenv("DWR_TUNING_DATABASE", raising=False)
    with remembering(tmp_path / "a.jsonl"):
        assert os.environ["DWR_TUNING_DATABASE"] == str(tmp_path / "a.sqlite3")
    assert "DWR_TUNING_DATABASE" not in os.environ


# onnxruntime


def pair(reference: float, candidate: float) -> Paired:
    return Paired(Timing((reference,) * SAMPLES), Timing((candidate,) * SAMPLES))


@pytest.mark.parametrize(
    ("sites", "statuses", "gain"), [(0, ["timed", "same"], 1.0), (3, ["timed", "timed"], 2.0)]
)
def test_entries_of_onnxruntime(sites: int, statuses: list[str], gain: float) -> None:
    entries = _models_onnx.entries_of("prefer_nhwc=1", pair(2e-3, 1e-3), {"sites": sites})
    assert [entry["status"] for entry in entries] == statuses
    case = _models_report.case({"entries": entries})
    assert (case.best, case.sites) == ("prefer_nhwc=1", sites)
    assert case.gain is not None and case.gain.median == pytest.approx(gain)


def test_options_of_a_setting() -> None:
    assert _models_onnx.options_of("") == {}
    assert _models_onnx.options_of("prefer_nhwc=1") == {"prefer_nhwc": "1"}


def test_a_missing_provider_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    _models_onnx.check("cpu")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingError, match="no CUDAExecutionProvider, only CPUExecutionProvider"):
        _models_onnx.check("cuda")
    monkeypatch.setattr(_models_onnx, "NEEDED", ("onnxruntime", "not_there"))
    with pytest.raises(MissingError, match="not_there not installed"):
        _models_onnx.check("cpu")


# Reporting


def entry(role: str, setting: str, us: float | None) -> Record:
    timed = {"status": "timed", "us": [us] * SAMPLES} if us else {"status": "same", "same_as": "x"}
    return {"way": f"{role}, {setting}", "role": role, "setting": setting, **timed}


@pytest.mark.parametrize(
    ("entries", "best", "free", "gain"),
    [
        ([("original", "", 8.0), ("rewritten", "", 4.0)], "", 1.0, 2.0),
        ([("original", "", 8.0), ("original", "a", 4.0), ("rewritten", "a", 4.0)], "a", 2.0, 1.0),
        ([("original", "", 8.0), ("original", "a", 9.0), ("rewritten", "a", 4.0)], "", 1.0, 2.0),
        ([("original", "", 8.0), ("original", "a", 2.0), ("rewritten", "", 4.0)], "a", 4.0, 0.5),
        ([("original", "", 8.0), ("original", "a", 4.0), ("rewritten", "a", None)], "a", 2.0, 1.0),
    ],
    ids=["plain", "a setting does as well", "a setting is worse", "a setting is better", "kept"],
)
def test_the_gain_is_that_over_the_best_setting(
    entries: list[tuple[str, str, float | None]], best: str, free: float, gain: float
) -> None:
    case = _models_report.case({"entries": [entry(*each) for each in entries]})
    assert (case.best, case.free) == (best, pytest.approx(free))
    assert case.gain is not None and case.gain.median == pytest.approx(gain)
    assert case.slower is (gain < 0.99)


def results(*groups: Record) -> Results:
    device = {"name": "a GPU", "label": "", "torch": "2"}
    run = {"record": "run", "schema": SCHEMA, "study": "models", "device": device, "state": {},
           "clock": "none", "date": "", "command": ["x"]}  # fmt: skip
    return Results([run], {group["key"]: group for group in groups})


def group(name: str, us: float) -> Record:
    return {
        "record": "group", "key": name, "seconds": 1.0, "network": name, "engine": "torch eager",
        "mode": "inference", "batch": 8, "dtype": "tf32",
        "entries": [entry("original", "", 8.0), entry("rewritten", "", us)],
    }  # fmt: skip


def test_the_table_has_mean_worst_best_and_the_slower(tmp_path: Path) -> None:
    told, fine = _models_report.write(results(group("a", 2.0), group("b", 16.0)), tmp_path)
    assert "| torch eager inference tf32 | 2 | 0 | 1.414 | 0.500 | 4.000 | 1 | 0 |" in told
    assert not fine and told.endswith("SLOWER: b")
    assert {path.name for path in tmp_path.iterdir()} == {"models.json", "models.md", "models.png"}


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    honest = group("a", 2.0)
    for spoil, said in (
        (lambda g: g.pop("engine"), "the group lacks engine"),
        (lambda g: g["entries"][1].update(us=[1.0, 1.0]), "different numbers of samples"),
        (lambda g: g["entries"][0].update(us=[0.0]), "positive microseconds"),
    ):
        spoiled = json.loads(json.dumps(honest))
        spoil(spoiled)
        path = tmp_path / "spoiled.jsonl"
        lines = [*results().runs, spoiled]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(DamagedError, match=said):
            models.merge([path], tmp_path)
    other = results(honest)
    other.runs[0]["study"] = "paper_table"
    with pytest.raises(DamagedError, match="results of paper_table, not of models"):
        _models_report.write(other, tmp_path)
