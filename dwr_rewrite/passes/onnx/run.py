"""One run from a model to a checked model or file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from dwr_rewrite import __version__
from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.equivalence.samples import Inputs
from dwr_rewrite.errors import DwrError, NotEquivalentError, Rejection
from dwr_rewrite.passes.onnx import check, files
from dwr_rewrite.passes.onnx.files import Staged
from dwr_rewrite.passes.onnx.graphs import collector_paused
from dwr_rewrite.passes.onnx.provider import Provider
from dwr_rewrite.passes.onnx.rewrite import Options, check_options, freeze, overridable, rewrite
from dwr_rewrite.passes.onnx.tune.auto import Auto, Chosen
from dwr_rewrite.passes.onnx.tune.engine import Engine, Onnxruntime
from dwr_rewrite.passes.onnx.tune.ground import Target
from dwr_rewrite.passes.onnx.types import declared
from dwr_rewrite.passes.onnx.verify import asked, failure
from dwr_rewrite.passes.onnx.whole import stage, totals
from dwr_rewrite.planner import AUTO
from dwr_rewrite.report import Report, SiteReport, Totals
from dwr_rewrite.tuning.tune import Progress, silent


@dataclass(frozen=True)
class Rewrite:
    """What a run gives.

    Attributes:
        model: the rewritten model, its tensors in memory.
        report: what was done and observed.
    """

    model: ModelProto
    report: Report


@dataclass(frozen=True)
class Run:
    """One configured run.

    Attributes:
        options: of the pass.
        settings: inputs, shapes and limits of the check, and of the timing.
        verify: make the check.
        external: keep tensors in a second file.
        progress: told what is going on.
        command: how to repeat the run, for the report.
        target: what the model is to be fast on.
        measure: otherwise the policy ``auto`` only looks at what is known already.
        engine: what measures.
    """

    options: Options
    settings: Settings = field(default_factory=Settings)
    verify: bool = True
    external: bool = False
    progress: Progress = silent
    command: str = ""
    target: Target = field(default_factory=Target)
    measure: bool = True
    engine: Engine = field(default_factory=Onnxruntime)

    def __call__(self, source: files.Source, output: Path | None) -> Rewrite:
        """Rewrites a model in place, checks it, and writes it to ``output`` if one is given.

        Raises:
            NotEquivalentError: not shown to be equal.
            DwrError: bad usage or bad input.
        """
        self._check(source, output)
        try:
            with collector_paused():
                return self._run(source, output)
        except UnicodeDecodeError as error:  # protobuf decodes a name only when it is read
            raise DwrError(f"{source.name}: is damaged: a name in it is no text") from error

    @property
    def _auto(self) -> bool:
        return self.options.policy == AUTO and not self.options.restore

    @property
    def _provider(self) -> Provider | None:
        """On which a policy of one form has to prove itself."""
        name = self.target.provider
        return None if self._auto or name is None else Provider(name, self.target.options)

    def _check(self, source: files.Source, output: Path | None) -> None:
        """Refuses what cannot be asked for, or would lose a file.

        Raises:
            DwrError: says what.
        """
        check_options(self.options)
        named = self.target.provider is not None or self.target.name is not None
        if self.options.restore and named:
            raise DwrError("what is restored is not timed: leave the provider and the target out")
        if not self._auto and self.target.name is not None:
            raise DwrError(f"a target chooses the forms, and the policy {self.options.policy} does "
                           f"that already: leave one of them out")  # fmt: skip
        if self.target.options and self._auto is False and self.target.provider is None:
            raise DwrError("provider options are for the provider that times the model: name it")
        if self._provider is not None and not self.verify:
            raise DwrError("only what was checked is timed: a provider needs the check")
        minimal = self.settings.minimal
        for path in (output, minimal):
            for written in files.with_data(path):
                files.check_apart(written, source.files, "which belongs to the input")
        for written in files.with_data(minimal):
            files.check_apart(written, files.with_data(output), "which is the output")
        if self.verify or self._auto:
            Inputs(dict(declared(source.model)), self.settings.shapes, self.settings.given)

    def _run(self, source: files.Source, output: Path | None) -> Rewrite:
        model = source.model
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dwr-")))
            reference = source.path
            before = totals(model, source.size(), reference)
            if reference is None and (self.verify or self._auto):
                reference = stage(scratch / "original.onnx", model, stack, self.external).path
            baseline = self._baseline(model, reference, scratch, stack)
            chosen = self._choose(model, baseline)
            sites = rewrite(model, self.options, chosen and chosen.plan)
            after = totals(model, files.tensor_bytes(model))
            report = self._report(source.name, output, sites, before, after)
            if chosen is not None:
                report = _with_choices(report, chosen)
                if not report.changed and not self.options.freeze_weights:
                    assert reference is not None
                    return self._keep(report, source, reference, output, stack)
            checked = self.verify and (report.changed or self.options.freeze_weights)
            if output is None and not checked:
                return Rewrite(model, report)
            staged = stage(output or scratch / "rewritten.onnx", model, stack, self.external)
            report = replace(report, after=totals(model, staged.size(), staged.path))
            if checked and reference is not None:
                report = self._checked(report, reference, staged)
                if self._provider is not None and report.changed:
                    report, faster = self._timed(
                        report, baseline or reference, staged, self._provider
                    )
                    if not faster:
                        return self._keep(report, source, reference, output, stack)
            if output is not None:
                staged.commit()
            return Rewrite(model, report)

    def _baseline(
        self, model: ModelProto, reference: Path | None, scratch: Path, stack: ExitStack
    ) -> Path | None:
        """What a rewritten model is timed against: constant weights alone are not its merit."""
        if reference is None or not (self.options.freeze_weights and overridable(model)):
            return reference
        constant = files.read(reference).model
        freeze(constant)
        return stage(scratch / "constant.onnx", constant, stack, self.external).path

    def _choose(self, model: ModelProto, reference: Path | None) -> Chosen | None:
        """The plan of the policy ``auto``; None for any other."""
        if not self._auto:
            return None
        assert reference is not None
        auto = Auto(
            self.options, self.settings, self.target, self.engine, self.progress, self.measure
        )
        return auto(model, reference)

    def _timed(
        self, report: Report, reference: Path, staged: Staged, provider: Provider
    ) -> tuple[Report, bool]:
        """The report with the times of the whole model, and whether it is faster."""
        models = reference, staged.path
        timed = self.engine.time(models, self.settings, provider, self.progress)
        report = replace(report, runtime=timed.runtime)
        if timed.pair.is_faster(self.target.min_speedup):
            return report, True
        device = timed.device.name
        reason = Rejection("not-faster", f"the rewritten model is not faster on {device}")
        sites = tuple(site.kept(reason) if site.changed else site for site in report.sites)
        notes = (*report.notes, f"Kept the original: no faster form on {device}.")
        return replace(report, sites=sites, notes=notes), False

    def _keep(
        self,
        report: Report,
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
        return Rewrite(original, replace(report, after=report.before))

    def _checked(self, report: Report, reference: Path, staged: Staged) -> Report:
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
        if self.verify:
            options |= asked(self.settings)
        written = None if output is None else str(output)
        return Report(
            __version__, source, written, options, tuple(sites), before, after,
            command=self.command or _call(source, written, options),
        ).here()  # fmt: skip


def _with_choices(report: Report, chosen: Chosen) -> Report:
    """What was weighed beside every site, what was timed, and what the plan rests on."""
    sites = tuple(
        replace(site, choices=chosen.plan.choices.get(site.name, ())) for site in report.sites
    )
    return replace(report, sites=sites, runtime=chosen.runtime, notes=chosen.notes)


def _call(source: str, written: str | None, options: Mapping[str, Any]) -> str:
    """The call from Python that gives this report."""
    names = [f.name for f in fields(Options) if options[f.name] not in (f.default, (), [])]
    keywords = [f"{name}={options[name]!r}" for name in names]
    keywords += [f"seed={options['seed']}"] if "seed" in options else ["verify=False"]
    return f"dwr.onnx_rewrite({', '.join([repr(source), repr(written), *keywords])})"
