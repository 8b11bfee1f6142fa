"""``python -m dwr_rewrite.tune`` with an engine that makes times up."""

from __future__ import annotations

import os
import sys

import numpy as np
import onnx
import pytest

from dwr_rewrite import tune
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.passes.onnx.provider import CPU, CUDA, Provider
from dwr_rewrite.timing import FreeSetting, Speedup
from dwr_rewrite.tuning import Device
from dwr_rewrite.tuning.database import PATH_VARIABLE, Database
from tests.tuning.fakes import FakeBench

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES")


def two_sizes() -> onnx.ModelProto:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,16,8,8] x) => (float[1,16,4,4] z) {
        y = Conv <group = 16, strides = [2, 2], pads = [1, 1, 1, 1]> (x, w)
        z = Conv <group = 16, pads = [1, 1, 1, 1]> (y, w) }"""
    model = onnx.parser.parse_model(text)
    weight = np.ones((16, 1, 3, 3), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model


class Engine:
    """Two GPUs, whose convolutions are faster with `prefer_nhwc`."""

    provider = Provider(CUDA)
    asked: list[str] = []  # noqa: RUF012
    interrupts = False

    def bench(self, provider, options):
        used = Provider(self.provider.name, options)
        device = Device("NVIDIA Abacus", used.name, dict(options))
        times = dict.fromkeys([KEEP, "dense", *(f"blocks:{2 << n}" for n in range(9))], 1.0)
        bench = FakeBench(times, device=device, before=self.interrupt)
        bench.provider = used
        Engine.asked.append(str(used))
        return bench

    def interrupt(self, number: int) -> None:
        if self.interrupts and number == 1:
            raise KeyboardInterrupt

    def free(self, model, settings, provider, progress):
        if provider.name == CPU:
            return ()
        return (FreeSetting("prefer_nhwc=1", "", True, Speedup(1.5, 1.4, 1.6)),)


@pytest.fixture
def engine(monkeypatch):
    Engine.asked.clear()
    monkeypatch.setattr("dwr_rewrite.passes.onnx.tune.engine.Onnxruntime", Engine)
    return monkeypatch


@pytest.fixture
def run(tmp_path, engine, capsys):
    engine.setenv(PATH_VARIABLE, str(tmp_path / "tuning.sqlite3"))
    for name in TORCHRUN:
        engine.setenv(name, "")  # so that it is put back, whatever the command sets
        engine.delenv(name)
    onnx.save(two_sizes(), tmp_path / "model.onnx")

    def call(*arguments: object) -> tuple[int, str, str]:
        engine.setattr(sys, "argv", ["tune", str(tmp_path / "model.onnx"), *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            tune.main()
        return (exit_.value.code or 0, *capsys.readouterr())

    return call


def test_the_sizes_of_a_model_are_measured_under_its_best_free_setting(run):
    code, out, err = run("--provider", "cuda", "--provider-option", "use_tf32=0")
    assert (code, err) == (0, "")
    assert Engine.asked == [f"{CUDA}, use_tf32=0", f"{CUDA}, use_tf32=0, prefer_nhwc=1"]
    with Database.open() as database:
        (held,) = database.holdings()
        assert held.device.facts == {"use_tf32": "0", "prefer_nhwc": "1"}
        assert held.answers == 2
        assert out.startswith("2 of 2 sizes of ")
        assert str(database.path) in out


def test_ctrl_c_says_where_the_measurements_are(run, engine, tmp_path):
    engine.setattr(Engine, "interrupts", True)
    code, out, err = run()
    assert (code, out) == (130, "")
    assert err.endswith(f"interrupted; {tmp_path / 'tuning.sqlite3'} holds what was measured\n")
    with Database.open() as database:
        assert [held.answers for held in database.holdings()] == [1]


@pytest.mark.parametrize(
    ("visible", "local_rank", "own"),
    [(None, 1, "1"), ("2,3", 1, "3"), ("2, 3", 0, "2"), ("GPU-a,GPU-b", 0, "GPU-a"), ("", 1, "")],
)
def test_every_process_sees_its_own_gpu(run, engine, visible, local_rank, own):
    for name, value in {"LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": 2}.items():
        engine.setenv(name, str(value))
    if visible is not None:
        engine.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert run("--budget", 0)[0] == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_one_process_sees_what_it_saw(run):
    assert run("--budget", 0)[0] == 0
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("variables", "arguments", "reason"),
    [
        ({}, ["--provider-option", "use_tf32"], "--provider-option 'use_tf32': KEY=VALUE"),
        ({}, ["--budget", "-1"], "--budget"),
        ({}, ["--shape", "nothing:1x2"], "nothing"),
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "0"}, [],
         "process 1 of this host has no GPU of its own: CUDA_VISIBLE_DEVICES names 1;"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line(run, engine, variables, arguments, reason):
    for name, value in variables.items():
        engine.setenv(name, value)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("dwr_rewrite.tune: error: ")
    assert reason in err
    assert err.count("\n") == 1


def test_two_processes_do_not_measure_on_one_cpu(run, engine):
    engine.setattr(Engine, "provider", Provider(CPU))
    engine.setenv("LOCAL_WORLD_SIZE", "2")
    code, _, err = run("--provider", "cpu")
    assert code == 2
    assert "2 processes would measure on one CPU" in err
    engine.setenv("LOCAL_WORLD_SIZE", "1")
    assert run("--provider", "cpu")[0] == 0


def test_rank_0_decides_for_all():
    assert tune.by_rank_0(lambda: "prefer_nhwc") == "prefer_nhwc"
