"""Runs a verification in a child process, so that a crash or a hang there becomes a sentence."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.equivalence.samples import Arrays
from dwr_rewrite.equivalence.subject import Site
from dwr_rewrite.equivalence.verification import Verification
from dwr_rewrite.errors import DwrError, NotEquivalentError
from dwr_rewrite.passes.onnx import child
from dwr_rewrite.passes.onnx.child import Progress
from dwr_rewrite.report import SiteReport

WORKER = ["-m", "dwr_rewrite.passes.onnx.worker"]
"""What Python runs as the child process."""


@dataclass(frozen=True)
class Job:
    """What the child process is told.

    Attributes:
        reference: a model file.
        candidate: a model file.
        sites: what is compared by itself.
        settings: what to run.
    """

    reference: Path
    candidate: Path
    sites: tuple[Site, ...]
    settings: Settings


def verify(
    reference: Path,
    candidate: Path,
    sites: Iterable[SiteReport],
    settings: Settings,
    progress: Progress = lambda what: None,
) -> Verification:
    """Compares two model files on several inputs.

    Args:
        reference: the original.
        candidate: the model in question.
        sites: the sites that are compared by themselves.
        settings: inputs, shapes, seed and time limit.
        progress: told what is going on.

    Raises:
        NotEquivalentError: the child crashed or ran out of time, so nothing was shown.
        DwrError: the given inputs or shapes do not fit the model.
    """
    started = time.monotonic()
    paths = reference.resolve(), candidate.resolve()
    job = Job(*paths, tuple(_sites(sites)), settings)
    outcome: Verification
    try:
        outcome, warnings = child.run(WORKER, job, settings.timeout, progress)
    except child.ChildError as error:
        raise NotEquivalentError(
            f"the process that ran the models {error}: nothing is proved{error.remedy}"
        ) from None
    return replace(outcome, warnings=warnings, seconds=time.monotonic() - started)


def _sites(sites: Iterable[SiteReport]) -> Iterable[Site]:
    for site in sites:
        if site.spec is not None:
            terms = site.spec.taps + site.spec.bias
            yield Site(site.name, site.output, site.spec.dtype, terms, site.form)


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


def parse_inputs(texts: Sequence[str], names: Sequence[str]) -> dict[str, Arrays]:
    """Reads real inputs, as cases: ``{"given": {name: array}}``.

    Args:
        texts: ``name:file.npy``, ``name:file.npz`` and ``file.npz`` items, which make one case
            together; or a folder, of whose .npy and .npz files each is a case of its own.
        names: the model's inputs.

    Raises:
        DwrError: a file that cannot be read, or an input that the model has not.
    """
    cases: dict[str, Arrays] = {}
    for text in texts:
        if Path(text).is_dir():
            files = sorted(p for p in Path(text).iterdir() if p.suffix in (".npy", ".npz"))
            if not files:
                raise DwrError(f"--input {text!r}: the folder holds no .npy and no .npz file")
            cases |= {file.name: _case(str(file), names) for file in files}
        else:
            cases.setdefault("given", {}).update(_case(text, names))
    return cases


def _case(text: str, names: Sequence[str]) -> Arrays:
    name, _, file = text.rpartition(":")
    if len(names) == 1 and file.endswith(".npy"):
        name = name or names[0]
    if not file.endswith((".npy", ".npz")) or (not name and file.endswith(".npy")):
        raise DwrError(f"--input {text!r}: NAME:file.npy, file.npz or a folder expected")
    arrays = _arrays(Path(file))
    if name:
        if len(arrays) != 1 and name not in arrays:
            raise DwrError(f"--input {text!r}: {file} holds {', '.join(arrays)}, not {name}")
        arrays = {name: arrays.get(name, next(iter(arrays.values())))}
    for key in arrays:
        _check_name("--input", key, names)
    return arrays


def _arrays(path: Path) -> Arrays:
    """The arrays of an .npy or .npz file; pickled objects are refused."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded}
    except FileNotFoundError:
        raise DwrError(f"--input {path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DwrError(f"--input {path}: is not a numpy file: {error}") from None


def _check_name(option: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise DwrError(f"{option} {name!r}: the model has no such input; its inputs are {known}")
