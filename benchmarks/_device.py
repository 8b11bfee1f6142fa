"""The device: what it is, what runs on it, and what state it is in."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import _measure
from dwr_rewrite import nvidia

NOT_THE_TARGET = "a CPU, not the target"
STATE = (
    "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
)


def pick() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def facts(device: torch.device, libraries: Iterable[str] = ()) -> dict[str, Any]:
    """What must be the same for two files to be one study; ``libraries`` besides torch's own."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
        "triton": _measure.versions("triton").get("triton"),
        "python": platform.python_version(),
        **_measure.versions(*libraries),
    }
    if device.type != "cuda":
        host = _measure.host()
        return {"name": host["cpu"], "cores": host["cores"], "label": NOT_THE_TARGET, **found}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver(),
        "label": "",
        **found,
    }


def slug(found: dict[str, Any]) -> str:
    """The folder of a device's results."""
    if found["label"]:
        return _measure.slug({"cpu": found["name"], "cores": found["cores"]})
    return "-".join(re.findall(r"[a-z0-9]+", found["name"].lower()))


def state() -> dict[str, str]:
    """Clocks, power limit and temperature now; nothing of a CPU."""
    if not torch.cuda.is_available():
        return {}
    return nvidia.state(torch.cuda.current_device()) or _by_program()


def _by_program() -> dict[str, str]:
    """The same as nvidia-smi tells it, where NVML's module is missing; nothing without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    index = str(torch.cuda.current_device())
    command = [program, f"--query-gpu={STATE}", "--format=csv,noheader", f"--id={index}"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    values = [value.strip() for value in told.stdout.split(",")]
    names = STATE.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def driver() -> str | None:
    return nvidia.driver_version() or _by_program().get("driver_version")


def source(files: Iterable[Path]) -> str:
    """A digest of the code that measures and of the product's code that is measured."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:16]


def everything() -> list[Path]:
    """The code of all studies and of the product."""
    root = _measure.ROOT
    return [*(root / "benchmarks").glob("*.py"), *(root / "dwr_rewrite").rglob("*.py")]


def begin(
    study: str, device: torch.device, clock: str, libraries: Iterable[str] = (), **more: Any
) -> dict[str, Any]:
    """The record with which a run begins."""
    return {
        "record": "run",
        "study": study,
        "device": facts(device, libraries),
        "state": state(),
        "clock": clock,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", f"benchmarks.{study}", *sys.argv[1:]],
        **more,
    }
