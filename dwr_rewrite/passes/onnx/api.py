"""One run from a model to a checked model or file: what the command line and Python call."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto

from dwr_rewrite import __version__
from dwr_rewrite.errors import DwrError, NotEquivalentError
from dwr_rewrite.passes.onnx import check, files
from dwr_rewrite.passes.onnx.files import Staged, staging
from dwr_rewrite.passes.onnx.rewrite import Options, rewrite
from dwr_rewrite.report import Report, SiteReport, Totals


@dataclass(frozen=True)
class Rewrite:
    """What a run gives.

    Attributes:
        model: the rewritten model, its tensors in memory.
        report: what was done and observed.
    """

    model: ModelProto
    report: Report


def onnx_rewrite(
    model: str | os.PathLike[str] | ModelProto,
    output: str | os.PathLike[str] | None = None,
    *,
    policy: str = "blocks:32",
    weights: Literal["precomputed", "linked"] = "precomputed",
    freeze_weights: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_growth: int = 256 << 20,
    restore: bool = False,
    verify: bool = True,
    inputs: Mapping[str, ArrayLike] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    timeout: float = 600.0,
    save_external_data: bool = False,
) -> Rewrite:
    """Rewrites the depthwise convolutions of an ONNX model as diagonal standard convolutions.

    Args:
        model: a file, or a model in memory, which is not changed.
        output: the file to write; None to write none.
        policy: ``blocks:N`` (groups of N channels), ``dense`` (one group) or ``keep``.
        weights: ``precomputed`` stores the diagonal weights; ``linked`` keeps the compact ones and
            builds the diagonal in the graph, so that the file does not grow.
        freeze_weights: make initializers that are also graph inputs constant.
        include: only sites whose name one of these regular expressions finds.
        exclude: no site whose name one of these regular expressions finds.
        max_growth: weight bytes that may be added; sites past it are kept.
        restore: give an already rewritten model its depthwise convolutions back.
        verify: run both models and compare them before anything is written.
        inputs: real inputs for the check, by name; seeded ones are run in any case.
        shapes: shapes for inputs with dynamic dimensions.
        seed: of the seeded inputs.
        timeout: seconds that the check may take.
        save_external_data: keep the tensors of ``output`` in ``<output>.data``.

    Returns:
        The rewritten model and the report.

    Raises:
        NotEquivalentError: the check failed or could not be made; nothing was written.
        DwrError: bad usage or bad input; nothing was written.
    """
    options = Options(policy, weights, freeze_weights, include, exclude, max_growth, restore)
    with tempfile.TemporaryDirectory(prefix="dwr-") as folder:
        arrays: dict[str, Path] = {}
        for count, (name, array) in enumerate((inputs or {}).items()):
            arrays[name] = Path(folder) / f"{count}.npy"
            np.save(arrays[name], np.asarray(array))
        settings = check.Settings(
            arrays, {k: tuple(v) for k, v in (shapes or {}).items()}, seed, timeout
        )
        run = Run(options, settings if verify else None, save_external_data)
        if isinstance(model, ModelProto):
            copy = ModelProto()
            copy.CopyFrom(model)
            return run(copy, "a model in memory", None if output is None else Path(output))
        path = Path(model)
        return run(files.read(path), str(path), None if output is None else Path(output), path)


def restore(
    model: str | os.PathLike[str] | ModelProto,
    output: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
) -> Rewrite:
    """Gives a rewritten model its depthwise convolutions back.

    Args:
        model: a file, or a model in memory, which is not changed.
        output: the file to write; None to write none.
        verify: run both models and compare them before anything is written.

    Raises:
        NotEquivalentError: the check failed or could not be made; nothing was written.
        DwrError: bad input; nothing was written.
    """
    return onnx_rewrite(model, output, restore=True, verify=verify)


@dataclass(frozen=True)
class Run:
    """One configured run.

    Attributes:
        options: of the pass.
        settings: of the check; None to make none.
        external: keep tensors in a second file.
        progress: told what is going on.
    """

    options: Options
    settings: check.Settings | None
    external: bool = False
    progress: check.Progress = lambda done, total, what: None

    def __call__(
        self, model: ModelProto, source: str, output: Path | None, path: Path | None = None
    ) -> Rewrite:
        """Rewrites ``model`` in place, checks it, and writes it to ``output`` if one is given.

        Args:
            model: a model that may be changed.
            source: what it is called in the report.
            output: the file to write.
            path: the file that ``model`` was read from, if it was.

        Raises:
            NotEquivalentError: not shown to be equal.
            DwrError: bad usage or bad input.
        """
        _guard_input(model, output, path)
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dwr-")))
            reference = path
            if self.settings and reference is None:
                reference = _stage(scratch / "original.onnx", model, stack, self.external).path
            before = _totals(model, files_size(path, model))
            sites = rewrite(model, self.options)
            target = output or scratch / "rewritten.onnx"
            report = self._report(source, output, sites, before, before)
            if output is None and not (self.settings and report.changed):
                after = _totals(model, files.tensor_bytes(model))
                return Rewrite(model, replace(report, after=after))
            staged = _stage(target, model, stack, self.external)
            report = replace(report, after=_totals(model, staged.size()))
            if self.settings and (report.changed or self.options.freeze_weights):
                assert reference is not None
                report = self._checked(report, reference, staged)
            if output is not None:
                staged.commit()
            return Rewrite(model, report)

    def _checked(self, report: Report, reference: Path, staged: Staged) -> Report:
        assert self.settings is not None
        observed = check.verify(
            reference, staged.path, report.changed, self.settings, self.progress
        )
        report = replace(report, verification=observed)
        if observed.verdict == "passed":
            return report
        raise NotEquivalentError(_failure(report), replace(report, output=None))

    def _report(
        self,
        source: str,
        output: Path | None,
        sites: list[SiteReport],
        before: Totals,
        after: Totals,
    ) -> Report:
        options: dict[str, Any] = asdict(self.options)
        if self.settings:
            options |= {"seed": self.settings.seed, "shapes": dict(self.settings.shapes)}
        written = None if output is None else str(output)
        return Report(__version__, source, written, options, tuple(sites), before, after)


def _failure(report: Report) -> str:
    observed = report.verification
    assert observed is not None
    if observed.worst is None or observed.verdict != "failed":
        skipped = [case.skipped for case in observed.cases if case.skipped]
        why = "; ".join(dict.fromkeys([*skipped, *observed.notes])) or (
            "rounding alone moves an output by more than its size"
        )
        return f"the models could not be compared ({why}): nothing is proved"
    case, worst = observed.worst
    what = worst.reason or f"its {worst.by} is {worst.measured:.3g}, allowed {worst.tolerance:.3g}"
    output = f"output {worst.output!r}: " if worst.output else ""
    where = f"input {case.name!r}, {case.engine}"
    return f"the rewritten model is not equivalent: {output}{what} ({where})"


def _stage(target: Path, model: ModelProto, stack: ExitStack, external: bool) -> Staged:
    staged = stack.enter_context(staging(target))
    large = files.tensor_bytes(model) > files.PROTOBUF_LIMIT - files.MARGIN
    staged.write(model, external or large)
    return staged


def _guard_input(model: ModelProto, output: Path | None, path: Path | None) -> None:
    """No file of the input is overwritten, whatever links lead to it."""
    if output is None or path is None:
        return
    target = output.resolve()
    written = {target, target.with_name(f"{target.name}.data")}
    for file in (path.resolve(), *files.external_files(model, path)):
        if file in written or any(
            w.exists() and file.exists() and w.samefile(file) for w in written
        ):
            raise DwrError(
                f"{output}: would overwrite {file}, which belongs to the input; name another file"
            )


def _totals(model: ModelProto, size: int) -> Totals:
    return Totals(files.count_nodes(model), files.count_parameters(model), size)


def files_size(path: Path | None, model: ModelProto) -> int:
    """Bytes of the input on disk, or of its tensors when it came from memory."""
    if path is None:
        return files.tensor_bytes(model)
    return path.stat().st_size + sum(
        f.stat().st_size for f in files.external_files(model, path) if f.exists()
    )
