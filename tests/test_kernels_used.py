"""benchmarks.kernels_used: every way names its kernels, or says why not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _results, _run, kernels_used, layers
from benchmarks._layers_work import Group, Way, ways
from benchmarks._records import DamagedError
from tests.study_instruments import CPU


def group(**changes: Any) -> Group:
    return Group(**{"layer": layers.SMALL[0], "batch": 1, "dtype": "fp32", "direction": "forward",
                    **changes})  # fmt: skip


def test_the_longest_kernel_comes_first() -> None:
    large, small = torch.randn(400, 400), torch.randn(4)

    def call() -> None:
        small.neg()
        large @ large

    found = kernels_used.kernels(call, CPU)
    assert {"aten::neg", "aten::mm"} <= set(found)
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize("direction", ["forward", "grad_input", "grad_weight"])
def test_every_way_has_kernels_or_a_reason(direction: Any) -> None:
    asked = group(direction=direction)
    entries = kernels_used.look(asked, CPU)
    assert [entry["way"] for entry in entries] == [way.name for way in ways(asked)]
    for entry in entries:
        assert entry["status"] in ("same", "ran") or entry["reason"]
        if entry["status"] == "ran":
            assert any("conv" in name for name in entry["kernels"])
    assert {entry["form"] for entry in entries if entry["status"] == "ran"} >= {"keep", "dense"}


def test_tf32_is_refused_on_a_cpu() -> None:
    entries = kernels_used.look(group(dtype="tf32"), CPU)
    assert {e["reason"] for e in entries if e["status"] != "same"} == {
        "TF32 is a mode of CUDA devices"
    }


def test_a_profiler_that_sees_nothing_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_used, "kernels", lambda call, device: {})
    (first, *_) = kernels_used.look(group(), CPU)
    assert (first["status"], first["reason"]) == ("unsupported", "the profiler saw no kernel")


def written(folder: Path, *groups: Group) -> Path:
    out = folder / "kernels.jsonl"
    kernels_used.measure(groups, out, math.inf, "0/1")
    return out


def test_the_table_counts_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter([{"fast<float>": 2.0, "slow": 1.0}, {"void fast<half>": 3.0}])
    monkeypatch.setattr(kernels_used, "kernels", lambda call, device: next(names))
    first = {Way("nchw"): None}
    monkeypatch.setattr(kernels_used, "ways", lambda asked: first)
    out = written(tmp_path, group(), group(layer=layers.SMALL[1]))
    shown, _ = kernels_used.merge([out], tmp_path)
    assert "| fp32 | nchw | 1 | forward | keep default | 2 | `fast` (2) |" in shown
    assert len(_results.load(tmp_path / "kernels_used.json").groups) == 2


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    out = written(tmp_path, group())
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = next(line for line in lines if line["record"] == "group")
    found["entries"][0]["kernels"] = {}
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DamagedError, match="does not say which kernels ran"):
        kernels_used.merge([out], tmp_path)
    lines[0]["study"] = "layers"
    lines[0]["rates"] = {}
    out.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(DamagedError, match="no group was measured"):
        _run.merge([out])
