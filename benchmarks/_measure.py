"""Measures whole processes, and writes what was measured next to the machine it was measured on."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
Array = NDArray[np.float64]
Interval = tuple[float, float, float]  # the value, and the ends of its 95 % interval
KIB = 1024  # ru_maxrss is in KiB on Linux


@dataclass(frozen=True)
class Sample:
    """One run: wall and processor seconds, and peak resident bytes (None where not known)."""

    seconds: float
    cpu: float
    peak: int | None


@dataclass(frozen=True)
class Check:
    """A target: what is required, what was measured, and whether that passes."""

    target: str
    required: str
    measured: str
    passed: bool


def entry_point(target: str) -> list[str]:
    """The command of a console script `module:function`, run by this interpreter."""
    module, _, function = target.partition(":")
    return [sys.executable, "-c", f"from {module} import {function}; {function}()"]


def run(command: Sequence[str], cwd: Path) -> Sample:
    """Run a command to its end; one that fails raises with what it wrote to standard error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (cwd / "stderr.txt").open("w+b") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - the commands are those of the studies
            command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"exit code {process.returncode}: {errors.read().decode()[-2000:]}")
    # Linux counts the memory of this process, from which the child is made, as the child's own.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = usage.ru_maxrss * KIB if usage.ru_maxrss > own else None
    return Sample(seconds, usage.ru_utime + usage.ru_stime, peak)


def interleave(
    commands: Mapping[str, Sequence[str]], rounds: int, cwd: Path
) -> dict[str, list[Sample]]:
    """ABCABC..., so that a change of the machine's speed meets all alike; one round is warm-up."""
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    for count in range(rounds + 1):
        for name, command in commands.items():
            sample = run(command, cwd)
            if count:
                samples[name].append(sample)
    return samples


def median(samples: Iterable[Sample]) -> float:
    return float(np.median([sample.seconds for sample in samples]))


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample]) -> Interval:
    """Ratio of the median wall seconds."""
    rounds = [(a.seconds, b.seconds) for a, b in zip(ours, theirs, strict=True)]
    return _bootstrap(rounds, lambda medians: medians[..., 0] / medians[..., 1])


def exponent(runs: Mapping[int, Sequence[Sample]]) -> Interval:
    """Slope of the time above that of size 1 against the size, both logarithmic.

    It is processor time: waiting for other work would drown what is left without the start-up.
    """
    sizes = np.log([size for size in runs if size > 1])
    weights = (sizes - sizes.mean()) / np.square(sizes - sizes.mean()).sum()

    def slope(medians: Array) -> Array:
        # A draw in which noise hides the work counts as a steep one.
        above = np.maximum(medians[..., 1:] - medians[..., :1], 1e-9)
        return np.log(above) @ weights

    ordered = [runs[1], *(runs[size] for size in runs if size > 1)]
    return _bootstrap(list(zip(*([s.cpu for s in each] for each in ordered), strict=True)), slope)


def _bootstrap(times: Sequence[Sequence[float]], statistic: Callable[[Array], Array]) -> Interval:
    """A statistic of the medians and its bootstrap 95 % interval; whole rounds are drawn."""
    rounds = np.array(times)
    draws = np.random.default_rng(0).integers(len(rounds), size=(10_000, len(rounds)))
    low, high = np.quantile(statistic(np.median(rounds[draws], axis=1)), (0.025, 0.975))
    return float(statistic(np.median(rounds, axis=0))), float(low), float(high)


def in_child(function: Callable[..., object], *args: object) -> None:
    """Call a function in a process of its own: what it allocates must not count as ours."""
    child = multiprocessing.get_context("spawn").Process(target=function, args=args)
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"{function.__name__} failed with exit code {child.exitcode}")


def host() -> dict[str, Any]:
    """The machine, without its name."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
    return {
        "device": "cpu",
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg()[0],
    }


def slug(facts: Mapping[str, Any]) -> str:
    words = re.findall(r"[a-z0-9]+", facts["cpu"].lower())
    return "-".join(["cpu", *words, str(facts["cores"]), "cores"])


def versions(*names: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(study: str, facts: Mapping[str, Any], sections: Mapping[str, Any]) -> Path:
    """Write the sections; those of an earlier run that were not measured again stay."""
    path = ROOT / "benchmarks" / "results" / slug(facts) / f"{study}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**earlier, **sections}, indent=1) + "\n")
    return path.relative_to(ROOT)
