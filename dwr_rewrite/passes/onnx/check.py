"""Runs a verification in a child process, so that a crash or a hang there becomes a sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dwr_rewrite.errors import DwrError, NotEquivalentError
from dwr_rewrite.report import SiteReport
from dwr_rewrite.verify import Case, Comparison, Verification

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what is going on."""

WORKER = ["-m", "dwr_rewrite.passes.onnx.worker"]
"""What Python runs as the child process."""

_WARNING = re.compile(rb"\[[WEF]:onnxruntime")


@dataclass(frozen=True)
class Settings:
    """What the check runs on.

    Attributes:
        inputs: real inputs: name -> .npy file. They run besides the seeded ones.
        shapes: shapes for inputs with dynamic dimensions.
        seed: of the seeded inputs.
        timeout: seconds that the whole check may take; then it is ended.
        budget: seconds after which no further input is begun; 80 % of the timeout by default.
    """

    inputs: Mapping[str, Path] = field(default_factory=dict[str, Path])
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    seed: int = 0
    timeout: float = 600.0
    budget: float | None = None


def verify(
    reference: Path,
    candidate: Path,
    sites: Iterable[SiteReport],
    settings: Settings,
    progress: Progress = lambda done, total, what: None,
) -> Verification:
    """Compares two model files on several inputs.

    Args:
        reference: the original.
        candidate: the rewritten model.
        sites: the sites that differ.
        settings: inputs, shapes, seed and time limit.
        progress: told what is going on.

    Raises:
        NotEquivalentError: the child crashed or ran out of time, so nothing was shown.
        DwrError: the given inputs or shapes do not fit the model.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dwr-verify-") as folder:
        result = Path(folder) / "result.json"
        job = {
            "reference": str(reference.resolve()),
            "candidate": str(candidate.resolve()),
            "sites": [
                {"output": site.output, "dtype": site.spec.dtype, "taps": site.spec.taps}
                for site in sites
                if site.spec is not None
            ],
            "inputs": {name: str(path.resolve()) for name, path in settings.inputs.items()},
            "shapes": dict(settings.shapes),
            "seed": settings.seed,
            "budget": settings.timeout * 0.8 if settings.budget is None else settings.budget,
            "result": str(result),
        }
        warnings = _run_child(job, Path(folder), settings.timeout, progress)
        outcome = json.loads(result.read_text())
    if outcome.get("usage"):
        raise DwrError(outcome["usage"])
    cases = tuple(
        Case(c["name"], c["engine"], tuple(Comparison(**d) for d in c["comparisons"]), c["skipped"])
        for c in outcome["cases"]
    )
    return Verification(
        cases, outcome["versions"], warnings, time.monotonic() - started, tuple(outcome["notes"])
    )


def _run_child(job: dict[str, Any], folder: Path, timeout: float, progress: Progress) -> int:
    """Runs the worker to its end; returns how many warnings onnxruntime wrote."""
    description, log = folder / "job.json", folder / "stderr"
    description.write_text(json.dumps(job))
    command = [sys.executable, *WORKER, str(description)]
    stage = "starting"
    expired = threading.Event()
    with log.open("wb") as stderr, subprocess.Popen(  # noqa: S603  our own module
        command, stdout=subprocess.PIPE, stderr=stderr, stdin=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    ) as child:  # fmt: skip

        def expire() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(timeout, expire)
        timer.daemon = True  # an interrupt may come before the try below
        try:
            timer.start()
            assert child.stdout is not None
            for line in child.stdout:
                event = json.loads(line)
                stage = event["what"]
                progress(event["done"], event["total"], stage)
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            timer.cancel()
    if expired.is_set():
        raise NotEquivalentError(
            f"the check took longer than {timeout:g} s (while {stage}): nothing is proved; raise "
            f"--timeout, or give a smaller --shape"
        )
    content = log.read_bytes()
    if code != 0:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = content.decode(errors="replace").strip().splitlines()[-1:]
        raise NotEquivalentError(
            f"the process that ran the models ended with {how} while {stage}: nothing is proved"
            + (f" ({last[0]})" if last and code > 0 else "")
        )
    return len(_WARNING.findall(content))


def parse_shapes(texts: Sequence[str], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Reads ``name:1x3x224x224`` items for inputs called ``names``.

    Raises:
        DwrError: an item that cannot be read, or an input that the model has not.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, colon, lengths = text.rpartition(":")
        parts = lengths.split("x") if lengths else []
        if not colon or not all(part.isdecimal() for part in parts):
            raise DwrError(f"--shape {text!r}: NAME:1x3x224x224 expected")
        _check_name("--shape", name, names)
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def parse_inputs(texts: Sequence[str], names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Reads ``name:file.npy``, ``name:file.npz`` and ``file.npz`` items into files in ``folder``.

    Raises:
        DwrError: a file that cannot be read, or an input that the model has not.
    """
    files: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.rpartition(":")
        if not file.endswith((".npy", ".npz")) or (not name and file.endswith(".npy")):
            raise DwrError(f"--input {text!r}: NAME:file.npy or file.npz expected")
        arrays = _arrays(Path(file))
        if name:
            if len(arrays) != 1 and name not in arrays:
                raise DwrError(f"--input {text!r}: {file} holds {', '.join(arrays)}, not {name}")
            arrays = {name: arrays.get(name, next(iter(arrays.values())))}
        for key, array in arrays.items():
            _check_name("--input", key, names)
            files[key] = folder / f"{len(files)}.npy"
            np.save(files[key], array)
    return files


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npy or .npz file; pickled objects are refused."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded}
    except FileNotFoundError:
        raise DwrError(f"--input {path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise DwrError(f"--input {path}: is not a numpy file: {error}") from None


def _check_name(option: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise DwrError(f"{option} {name!r}: the model has no such input; its inputs are {known}")
