"""The studies of benchmarks/: every one starts, and their arithmetic is right; none is timed."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import _device, _measure
from benchmarks._measure import Sample

FOLDER = Path(_measure.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
STUDIES = [name for name in MODULES if not name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_imports(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("name", STUDIES)
def test_answers_help(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    shown = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(f"usage: python -m benchmarks.{name}")


BARE = """
import runpy, sys
from importlib.machinery import PathFinder
find, missing = PathFinder.find_spec, sys.argv[2].split(",")
PathFinder.find_spec = classmethod(
    lambda cls, name, *more: None if name.split(".")[0] in missing else find(name, *more)
)
module, sys.argv[1:] = sys.argv[1], sys.argv[3:]
runpy.run_module(module, run_name="__main__")
"""
"""Runs a study as on a machine that lacks packages."""

MISSING = (
    "ml_dtypes,platformdirs,pynvml,jsonschema,jinja2,rich,typer,onnx,onnxruntime,onnxscript,"
    "onnx_graphsurgeon,matplotlib,transformers,psutil"
)

QUICK = {
    "paper_table": ["| arXiv:1803.09926, PyTorch of its day |  |  | 5.4 |", "4 groups measured"],
    "kernels_used": ["| fp32 | nchw | 1 | grad_weight | dense benchmark |", "18 groups measured"],
    "models": [
        *(f"| {way} tf32 | 1 | 1 | 1.000 |" for way in (
            "torch eager training", "torch compiled inference", "onnxruntime inference"
        )),
        "4 groups measured",
    ],
}  # fmt: skip
"""What the quick form of a study prints on a CPU."""


@pytest.mark.parametrize("name", QUICK)
def test_quick_measures_something_of_everything_and_keeps_nothing(name: str) -> None:
    """Those that measure on borrowed GPUs need torch and numpy alone."""
    folder = FOLDER / "results"
    before = sorted(folder.rglob("*"))
    missing = "not_there" if name == "models" else MISSING
    command = [sys.executable, "-c", BARE, f"benchmarks.{name}", missing, "--quick"]
    shown = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    for text in (*QUICK[name], "(a CPU, not the target)", "all done: "):
        assert text in shown.stdout
    assert ("matplotlib is missing" in shown.stdout) is (name == "paper_table")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["roofline", "fit_cost", "models"])
def test_starts_where_only_torch_and_numpy_are(name: str) -> None:
    command = [sys.executable, "-c", BARE, f"benchmarks.{name}", MISSING, "--help"]
    subprocess.run(command, cwd=FOLDER.parent, capture_output=True, check=True)


def made(target: str, **variables: str) -> str:
    """The commands that make would run."""
    program = shutil.which("make")
    if program is None:
        pytest.skip("make is not installed")
    given = [f"{name}={value}" for name, value in variables.items()]
    command = [program, "-n", "-B", "-C", str(FOLDER.parent), target, *given]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_gpu_bench_runs_every_study_of_a_gpu_in_short_parts() -> None:
    commands = made("gpu-bench", GPU_PYTHON="python")
    studies = re.findall(r"-m benchmarks\.(\w+)", commands)
    assert set(studies) == {
        "layers", "roofline", "kernels", "kernels_used", "fit_cost", "paper_table", "models"
    }  # fmt: skip
    measuring = [s for s in commands.replace("\\\n", "").splitlines() if "--out" in s]
    assert len(measuring) == 5
    assert all("--minutes 8 --resume" in " ".join(line.split()) for line in measuring)
    assert len(re.findall(r"--merge", commands)) == 5


def test_the_demo_names_its_form() -> None:
    assert "--policy blocks:32" in made("demo", BIN="bin")


@pytest.mark.parametrize(
    ("told", "driver", "known"),
    [("580.82, 345 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 700 W, 31", "580.82", 7), ("?", None, 0)],
    ids=["told", "not understood"],
)
def test_state_of_a_gpu_without_nvml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, driver: str | None, known: int
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{told}'\n")
    program.chmod(0o755)

    assert _device.state() == {} or torch.cuda.is_available()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(_device.nvidia, "state", lambda index: {})
    monkeypatch.setattr(_device.nvidia, "driver_version", lambda: None)
    assert (_device.driver(), len(_device.state())) == (driver, known)


def samples(*seconds: float) -> list[Sample]:
    return [Sample(each, each, None) for each in seconds]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [((1.0, 1.1, 0.9), 0.5), ((2.0, 2.2, 1.8), 1.0), ((4.0, 4.4, 3.6), 2.0)],
    ids=["faster", "equal", "slower"],
)
def test_ratio(ours: tuple[float, ...], expected: float) -> None:
    middle, low, high = _measure.ratio(samples(*ours), samples(2.0, 2.2, 1.8))
    assert (middle, low, high) == pytest.approx((expected,) * 3)


def test_ratio_widens_with_noise() -> None:
    middle, low, high = _measure.ratio(samples(1.0, 3.0, 2.0), samples(2.0, 2.0, 2.0))
    assert (low, middle, high) == (0.5, 1.0, 1.5)


@pytest.mark.parametrize("power", [1.0, 2.0], ids=["linear", "quadratic"])
def test_exponent(power: float) -> None:
    runs = {n: samples(*[0.5 + (n**power if n > 1 else 0)] * 3) for n in (1, 10, 100, 1000)}
    assert _measure.exponent(runs) == pytest.approx((power,) * 3)


def test_run_reports_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit code 3: broken"):
        _measure.run(
            [sys.executable, "-c", "import sys; sys.stderr.write('broken'); sys.exit(3)"], tmp_path
        )


def test_slug_names_the_kind_of_device() -> None:
    assert _measure.slug({"cpu": "Some(R) CPU @ 2 GHz", "cores": 2}) == (
        "cpu-some-r-cpu-2-ghz-2-cores"
    )
