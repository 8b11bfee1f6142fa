from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from dwr_rewrite import nvidia
from dwr_rewrite.cli import bench
from dwr_rewrite.cost import Target, find_target
from dwr_rewrite.tuning.database import PATH_VARIABLE, Database
from tests.tuning.fakes import ABACUS, answer, question, with_facts

RATES = {
    "copy": 2.5e10, "launch": 1e-6, "l2_bytes": 3.2e7, "multiprocessors": 2.0, "fma.float32": 5e10,
    "matrix.float16": 7e10,
}  # fmt: skip


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    monkeypatch.setenv(PATH_VARIABLE, str(tmp_path / "tuning.sqlite3"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "tuning.sqlite3"


@pytest.fixture
def run(monkeypatch, capsys):
    """Exit code, standard output and standard error of the command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dwr-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            bench.main()
        return (exit_.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def rates(monkeypatch):
    """A calibration that measures nothing; which devices it was called for."""
    asked = []

    def measure(device):
        asked.append(device)
        return RATES

    module = ModuleType("calibrate")
    module.rates = measure
    monkeypatch.setitem(sys.modules, "dwr_rewrite.passes.fx.tune.calibrate", module)
    return asked


def test_results_move_from_one_machine_to_another(run, monkeypatch, tmp_path):
    with Database.open() as database:
        database.put(ABACUS, answer(question()))
        database.put(ABACUS, answer(question(96)))
    assert run("export", tmp_path / "results.jsonl") == (0, "", "")
    monkeypatch.setenv(PATH_VARIABLE, str(tmp_path / "other.sqlite3"))
    told = f"2 new or newer results are in {tmp_path / 'other.sqlite3'}\n"
    assert run("import", tmp_path / "results.jsonl") == (0, told, "")
    assert run("import", tmp_path / "results.jsonl")[1].startswith("0 new")
    with Database.open() as database:
        assert database.get(ABACUS, question()) == answer(question())


def test_show_lists_devices_and_versions(run):
    with Database.open() as database:
        database.put(ABACUS, answer(question()))
        database.put(with_facts(driver="\x1b[31m[red]9"), answer(question(96)))
        database.put_rates(ABACUS, RATES)
    code, out, err = run("show")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if line.strip().startswith("Abacus")]
    assert [line[:3] for line in lines] == [["Abacus", "9,", "torch"]] * 2
    assert [line[-3:-1] for line in lines] == [["0.1.0", "1"]] * 2
    assert "driver ?[31m[red]9," in out  # neither colours nor markup of somebody else's
    assert "\x1b" not in out
    assert "calibrated: Abacus 9" in out


def test_show_of_nothing_says_so(run, path):
    assert run("show") == (0, f"{path}: nothing was measured yet\n", "")


@pytest.mark.parametrize(("options", "is_target"), [(["--target", "cpu"], True), ([], False)])
def test_a_cpu_is_calibrated_and_labelled(run, rates, monkeypatch, options, is_target):
    monkeypatch.setattr(nvidia, "gpu", lambda index: None)
    code, out, err = run("calibrate", *options)
    assert (code, err) == (0, "")
    assert rates == ["cpu"]
    assert ("not the target" in out) == (not is_target)
    with Database.open() as database:
        (device,) = database.calibrated()
        assert device.target == is_target
        measured = database.rates(device)
    assert measured == RATES
    assert Target.measured(device.name, measured).bandwidth == RATES["copy"]


def test_a_known_gpu_is_shown_beside_its_data_sheet(run, rates, monkeypatch):
    monkeypatch.setattr(nvidia, "gpu", lambda index: nvidia.Gpu("NVIDIA H200", 50 << 20, "13.0"))
    code, out, err = run("calibrate")
    assert (code, err) == (0, "")
    assert rates == ["cuda:0"]
    known = find_target("NVIDIA H200")
    cells = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    assert cells["fma.float32"] == ["flop/s", "5e+10", f"{known.fma['float32']:.3g}"]
    assert cells["matrix.float16"] == ["flop/s", "7e+10", f"{known.matrix['float16']:.3g}"]
    assert cells["copy"] == ["byte/s", "2.5e+10", f"{known.bandwidth:.3g}"]
    assert cells["launch"] == ["s", "1e-06"]  # no data sheet has it
    assert "not the target" not in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["import", "missing.jsonl"], "missing.jsonl: cannot be read: No such file"),
        (["export", "missing/out"], "missing/out: cannot be written: No such file"),
        (["calibrate", "--target", "gpu"], "there is no NVIDIA GPU here; --target cpu"),
        (["calibrate", "--target", "tpu"], "'tpu' is not one of"),
        (["tune"], "No such command 'tune'"),
        (["export"], "Missing argument 'FILE'"),
    ],
)
def test_a_failure_is_one_line(run, monkeypatch, arguments, reason, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nvidia, "gpu", lambda index: None)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("dwr-bench: error: ")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["show"], ["export", "out.jsonl"], ["import", "in.jsonl"]])
def test_a_database_that_cannot_be_used_is_one_line(run, path, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path.write_bytes(b"not a database" * 500)
    code, _, err = run(*command)
    assert code == 2
    assert err.startswith(f"dwr-bench: error: {path}: the tuning results cannot be used")
    assert path.read_bytes() == b"not a database" * 500


def test_a_hostile_file_changes_nothing(run, tmp_path):
    with Database.open() as database:
        database.put(ABACUS, answer(question()))
    run("export", tmp_path / "results.jsonl")
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    row["answer"]["timings"]["keep"][0] = -1
    (tmp_path / "hostile").write_text("\n".join([*lines, json.dumps(row)]))
    code, out, err = run("import", tmp_path / "hostile")
    assert (code, out) == (2, "")
    assert "hostile, line 3: keep: samples of more than 0 s expected; nothing was imported" in err


def test_the_version_and_the_help(run):
    assert run("--version") == (0, "dwr-bench 0.1.0\n", "")
    for arguments in (["-h"], ["show", "-h"], ["calibrate", "--help"]):
        code, out, _ = run(*arguments)
        assert code == 0
        assert "Usage: dwr-bench" in out
