"""One run from a model to a checked model or file: what the command line and Python call."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto

from dwr_rewrite import __version__
from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.errors import DwrError, NotEquivalentError, Rejection
from dwr_rewrite.passes.onnx import check, files
from dwr_rewrite.passes.onnx.files import Staged
from dwr_rewrite.passes.onnx.graphs import collector_paused
from dwr_rewrite.passes.onnx.rewrite import Options, rewrite
from dwr_rewrite.passes.onnx.runtime import RuntimeResult, time_models
from dwr_rewrite.passes.onnx.verify import asked, failure
from dwr_rewrite.passes.onnx.whole import read, stage, totals
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
    provider: str | None = None,
    min_speedup: float = 1.02,
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
        provider: what the model is to be faster on: ``cuda``, ``tensorrt``, ``openvino``, ``dml``,
            ``cpu``. Both models are timed on it, and the original is kept, byte for byte, unless
            the rewritten one is faster beyond doubt. None to time nothing.
        min_speedup: how many times faster it has to be.
        save_external_data: keep the tensors of ``output`` in ``<output>.data``.

    Returns:
        The rewritten model and the report.

    Raises:
        NotEquivalentError: the check failed or could not be made; nothing was written.
        DwrError: bad usage or bad input; nothing was written.
    """
    options = Options(policy, weights, freeze_weights, include, exclude, max_growth, restore)
    given = {"given": {k: np.asarray(v) for k, v in inputs.items()}} if inputs else {}
    wanted = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    settings = Settings(shapes=wanted, given=given, seed=seed, timeout=timeout)
    target = None if provider is None else Target(provider, min_speedup)
    run = Run(options, settings if verify else None, save_external_data, target=target)
    return run(read(model), None if output is None else Path(output))


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
class Target:
    """What a rewritten model is to be faster on, and by how much; see :func:`onnx_rewrite`."""

    provider: str
    min_speedup: float


@dataclass(frozen=True)
class Run:
    """One configured run.

    Attributes:
        options: of the pass.
        settings: of the check; None to make none.
        external: keep tensors in a second file.
        progress: told what is going on.
        command: how to repeat the run, for the report.
        target: what it is to be faster on; None to time nothing.
    """

    options: Options
    settings: Settings | None
    external: bool = False
    progress: check.Progress = lambda what: None
    command: str = ""
    target: Target | None = None

    def __call__(self, source: files.Source, output: Path | None) -> Rewrite:
        """Rewrites a model in place, checks it, and writes it to ``output`` if one is given.

        Raises:
            NotEquivalentError: not shown to be equal.
            DwrError: bad usage or bad input.
        """
        if self.target is not None and self.settings is None:
            raise DwrError("only what was checked is timed: a provider needs the check")
        if self.target is not None and self.options.restore:
            raise DwrError("what is restored is not timed: leave the provider out")
        minimal = None if self.settings is None else self.settings.minimal
        for path in (output, minimal):
            for written in files.with_data(path):
                files.check_apart(written, source.files, "which belongs to the input")
        for written in files.with_data(minimal):
            files.check_apart(written, files.with_data(output), "which is the output")
        try:
            with collector_paused():
                return self._run(source, output)
        except UnicodeDecodeError as error:  # protobuf decodes a name only when it is read
            raise DwrError(f"{source.name}: is damaged: a name in it is no text") from error

    def _run(self, source: files.Source, output: Path | None) -> Rewrite:
        model = source.model
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dwr-")))
            reference = source.path
            before = totals(model, source.size(), reference)
            if self.settings and reference is None:
                reference = stage(scratch / "original.onnx", model, stack, self.external).path
            sites = rewrite(model, self.options)
            after = totals(model, files.tensor_bytes(model))
            report = self._report(source.name, output, sites, before, after)
            checked = self.settings and (report.changed or self.options.freeze_weights)
            if output is None and not checked:
                return Rewrite(model, report)
            staged = stage(output or scratch / "rewritten.onnx", model, stack, self.external)
            report = replace(report, after=totals(model, staged.size(), staged.path))
            if checked and reference is not None:
                report = self._checked(report, reference, staged)
                if self.target is not None and report.changed:
                    timed = self._timed(self.target, reference, staged.path)
                    report = replace(report, runtime=timed.runtime)
                    if not timed.pair.is_faster(self.target.min_speedup):
                        return self._keep(report, timed, source, reference, output, stack)
            if output is not None:
                staged.commit()
            return Rewrite(model, report)

    def _timed(self, target: Target, reference: Path, candidate: Path) -> RuntimeResult:
        assert self.settings is not None
        return time_models(
            reference, candidate, self.settings, provider=target.provider, progress=self.progress
        )

    def _keep(
        self,
        report: Report,
        timed: RuntimeResult,
        source: files.Source,
        reference: Path,
        output: Path | None,
        stack: ExitStack,
    ) -> Rewrite:
        """Writes the original: byte for byte, where it is one file."""
        original = files.read(reference).model
        if output is not None:
            if len(source.files) == 1:
                staged = stack.enter_context(files.staging(output))
                staged.copy(reference)
            else:  # from a pipe, from memory, or with tensors in files of their own
                staged = stage(output, original, stack, self.external or bool(source.files))
            staged.commit()
        reason = Rejection("not-faster", f"the rewritten model is not faster on {timed.device}")
        return Rewrite(original, replace(
            report, after=report.before,
            sites=tuple(site.kept(reason) if site.changed else site for site in report.sites),
            notes=(*report.notes, f"Kept the original: no faster form on {timed.device}."),
        ))  # fmt: skip

    def _checked(self, report: Report, reference: Path, staged: Staged) -> Report:
        assert self.settings is not None
        observed = check.verify(
            reference, staged.path, report.changed, self.settings, self.progress
        )
        report = replace(report, verification=observed)
        if observed.verdict == "equivalent":
            return report
        raise NotEquivalentError(failure(observed), replace(report, output=None))

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
            options |= asked(self.settings)
        written = None if output is None else str(output)
        return Report(
            __version__, source, written, options, tuple(sites), before, after,
            command=self.command or _call(source, written, options),
        ).here()  # fmt: skip


def _call(source: str, written: str | None, options: Mapping[str, Any]) -> str:
    """The call from Python that gives this report."""
    names = [f.name for f in fields(Options) if options[f.name] not in (f.default, (), [])]
    keywords = [f"{name}={options[name]!r}" for name in names]
    keywords += [f"seed={options['seed']}"] if "seed" in options else ["verify=False"]
    return f"dwr.onnx_rewrite({', '.join([repr(source), repr(written), *keywords])})"
