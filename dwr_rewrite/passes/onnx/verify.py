"""Two models compared, whatever made the second: a report, and in one sentence what it says."""

from __future__ import annotations

import gc
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from dwr_rewrite import __version__
from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.equivalence.verification import Verification
from dwr_rewrite.errors import DwrError, NotEquivalentError
from dwr_rewrite.passes.onnx import check, files
from dwr_rewrite.passes.onnx.graphs import collector_paused
from dwr_rewrite.passes.onnx.sites import compare_sites
from dwr_rewrite.passes.onnx.whole import path_of, read, totals
from dwr_rewrite.report import Report

if TYPE_CHECKING:
    from dwr_rewrite.passes.onnx.subject import OnnxSubject


def verify(
    reference: files.Source,
    candidate: files.Source,
    settings: Settings,
    *,
    progress: check.Progress = lambda what: None,
    command: str = "",
) -> Report:
    """Compares two models, whatever made the second.

    Args:
        reference: the original.
        candidate: the model in question.
        settings: what to run.
        progress: told what is going on.
        command: how to repeat the run, for the report.

    Raises:
        DwrError: the check could not be made.
    """
    for written in files.with_data(settings.minimal):
        files.check_apart(written, reference.files, "which belongs to the reference")
        files.check_apart(written, candidate.files, "which belongs to the candidate")
    with ExitStack() as stack, collector_paused():
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dwr-")))
        original = path_of(reference, scratch / "reference.onnx", stack)
        given = path_of(candidate, scratch / "candidate.onnx", stack)
        before = totals(reference.model, reference.size(), reference.path)
        after = totals(candidate.model, candidate.size(), candidate.path)
        sites = compare_sites(reference.model, candidate.model)
        reference.release()  # the child process reads them again
        candidate.release()
        gc.collect()  # graphsurgeon's views hold the models in cycles
        changed = [site for site in sites if site.changed] or sites
        try:
            observed = check.verify(original, given, changed, settings, progress)
        except NotEquivalentError as error:  # a crash or a timeout shows nothing either way
            raise DwrError(str(error)) from error
    return Report(
        __version__, reference.name, candidate.name, asked(settings), tuple(sites), before, after,
        observed, kind="verify", command=command,
    ).here()  # fmt: skip


def subject(model: str | os.PathLike[str] | ModelProto, stack: ExitStack) -> OnnxSubject:
    """A model that can be compared with one of another front end.

    Args:
        model: a file, or a model in memory.
        stack: keeps the temporary file of a model in memory.

    Raises:
        DwrError: it cannot be read.
    """
    from dwr_rewrite.passes.onnx.pair import weight_types
    from dwr_rewrite.passes.onnx.subject import OnnxSubject

    source = read(model)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dwr-")))
    path = path_of(source, scratch / "model.onnx", stack)
    return OnnxSubject(path, source.model, Rounding.of(weight_types(source.model)))


def asked(settings: Settings) -> dict[str, Any]:
    """What a report says of the settings of its check."""
    return {
        "seed": settings.seed,
        "shapes": dict(settings.shapes),
        "inputs": [*settings.kinds, *settings.given],
    }


def failure(observed: Verification) -> str:
    """One sentence on why a verification did not come out as equivalent."""
    if observed.verdict == "not checked":
        skipped = [case.skipped for case in observed.cases if case.skipped]
        untold = [
            f"no input tells right from wrong at output {name!r}: it is empty, or rounding alone "
            f"moves it by more than its size"
            for name in observed.untold
        ]
        why = "; ".join(dict.fromkeys([*skipped, *observed.notes, *untold]))
        return f"the models could not be compared ({why}): nothing is proved"
    first, *others = observed.failures
    more = f"; and {len(others)} more failures" if others else ""
    culprits = ""
    if observed.culprits is not None and observed.culprits.sites:
        culprits = f"; the smallest set of sites that fails: {', '.join(observed.culprits.sites)}"
    return f"the candidate is not equivalent: {first}{more}{culprits}"
