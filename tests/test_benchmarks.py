"""The studies of benchmarks/: every one starts, and their arithmetic is right; none is timed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import _measure
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
