"""Runs two models on the same inputs and collects what was observed.

One model after the other runs all inputs, and is let go of before the next begins: so no more than
one is held ready to run at a time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dwr_rewrite.equivalence.comparison import Comparison, identical
from dwr_rewrite.equivalence.drift import Drift
from dwr_rewrite.equivalence.evidence import Culprits, Probe
from dwr_rewrite.equivalence.plan import Plan, Settings
from dwr_rewrite.equivalence.sample import Sample, first_line, tensors
from dwr_rewrite.equivalence.samples import Arrays, Inputs
from dwr_rewrite.equivalence.statistics import Picture, picture
from dwr_rewrite.equivalence.subject import Evaluation, Pair, Subject
from dwr_rewrite.equivalence.suspects import find_culprits
from dwr_rewrite.equivalence.tolerance import UNIT_ROUNDOFF
from dwr_rewrite.equivalence.verification import DOUBLE, Case, Verification
from dwr_rewrite.equivalence.yardstick import Yardstick
from dwr_rewrite.errors import DwrError

HEAVY = 256 << 20
"""Parameter bytes above which inputs on which both models agree bit for bit, save for the first,
are not evaluated in float64: that takes many times as long as running the model."""


class Check:
    """One check of a pair of models.

    Args:
        pair: the models.
        settings: what to run.
        step: told what is going on.

    Raises:
        InputError: the given inputs do not fit the reference.
    """

    def __init__(
        self, pair: Pair, settings: Settings, step: Callable[[str], None] = lambda what: None
    ) -> None:
        """Takes what there is to compare."""
        self.pair, self.settings, self.step = pair, settings, step
        self.started = time.monotonic()
        self.notes: list[str] = []
        self.picture: tuple[float, Picture] | None = None
        self.plan = Plan(
            Inputs(pair.reference.declared, settings.shapes, settings.given), settings,
            lambda feeds: self.outputs(pair.reference, feeds),
        )  # fmt: skip
        self.yardstick = Yardstick(pair, self.plan, self.note)

    def run(self) -> Verification:
        """Everything that was observed.

        Raises:
            InputError: the reference runs on no input that was tried.
        """
        with tempfile.TemporaryDirectory(prefix="dwr-check-") as folder:
            drift = Drift(self.pair.sites, Path(folder))
            samples = self.run_reference(drift)
            if samples[0].failure:
                engine = self.pair.reference.engine
                case = Case(samples[0].name, engine, skipped=samples[0].failure)
                return self.finish(Verification((case,), proof=self.pair.proof))
            self.run_candidate(samples, drift)
            cases = tuple(self.compare(samples, drift))
        tapped = self.tapped(samples).name if drift.taps else ""
        found = Verification(
            cases, taps=drift.taps, tapped=tapped, probes=self.probes(), proof=self.pair.proof,
            picture=self.picture[1] if self.picture else None, outputs=tuple(samples[0].before),
        )  # fmt: skip
        if found.verdict == "not equivalent" and self.pair.changed:
            found = replace(found, culprits=self.culprits(found, samples))
        return self.finish(found)

    def culprits(self, found: Verification, samples: Sequence[Sample]) -> Culprits | None:
        """The sites to blame, and a file with only these; None where the time is up before."""
        self.step("looking for the site that is to blame")
        try:
            culprits = find_culprits(
                self.pair, found, samples, self.plan.feeds, lambda: self.left <= 0
            )
        except TimeoutError:
            self.note("out of time before the site to blame was found; raise --timeout")
            return None
        minimal = self.settings.minimal
        if culprits is None or minimal is None:
            return culprits
        try:
            self.pair.save_hybrid(culprits.sites, minimal)
        except DwrError as error:
            self.note(f"the smallest failing model was not written: {error}")
            return culprits
        return replace(culprits, model=str(minimal))

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.started + self.settings.seconds - time.monotonic()

    def finish(self, found: Verification) -> Verification:
        """Adds what is known of every check."""
        sums = [(site.name, site.terms) for site in self.pair.sites]
        return replace(
            found, versions=dict(self.pair.versions), rounding=self.pair.rounding,
            longest=max(sums, key=lambda pair: pair[1], default=None), notes=tuple(self.notes),
            seconds=time.monotonic() - self.started,
        )  # fmt: skip

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def cut(self, samples: list[Sample], index: int, needed: float) -> bool:
        """Drops the samples from an index on, once fewer seconds than needed are left."""
        if index == 0 or self.left > needed:
            return False
        names = ", ".join(sample.name for sample in samples[index:])
        self.note(f"out of time before these inputs were compared: {names}")
        del samples[index:]
        return True

    def outputs(self, subject: Subject, feeds: Arrays) -> Arrays:
        """The outputs in the subject's engine, else in float64."""
        if subject.engine == DOUBLE:
            return tensors(subject.exact(feeds).outputs)
        return subject.run(feeds)

    def tapped(self, samples: Sequence[Sample]) -> Sample:
        """The sample on which the sites are compared: real data, if there is some."""
        return next((s for s in samples if s.kind in self.settings.given), samples[0])

    def record(self, role: str, subject: Subject, samples: Sequence[Sample], drift: Drift) -> None:
        """Keeps the values of the sites; a note where they cannot be had."""
        if not drift.sites:
            return
        self.step(f"recording the sites of the {role}")
        try:
            drift.record(role, subject, self.plan.feeds(self.tapped(samples)))
        except Exception as error:  # noqa: BLE001  the engine raises many types
            self.note(f"the sites were not compared one by one: {first_line(error)}")

    def run_reference(self, drift: Drift) -> list[Sample]:
        """The samples with the reference's outputs; one with a failure where it has two."""
        subject, samples = self.pair.reference, list(self.plan)
        for index, sample in enumerate(samples):
            if self.cut(samples, index, 0.75 * self.settings.seconds):
                break
            self.step(f"running the reference on the input {sample.name!r}")
            feeds = self.plan.feeds(sample)
            sample.before = self.outputs(subject, feeds)
            if index == 0 and _differ(sample.before, self.outputs(subject, feeds)):
                sample.failure = "the reference gives two results for one input"
                return [sample]
        if odd := [repr(name) for name in subject.outputs if name not in samples[0].before]:
            self.note(f"outputs that are no real tensors were not compared: {', '.join(odd)}")
        if subject.engine != DOUBLE:
            subject.release()
            self.record("reference", subject, samples, drift)
        return samples

    def run_candidate(self, samples: list[Sample], drift: Drift) -> None:
        """Fills in the candidate's outputs, or why there are none."""
        subject = self.pair.candidate
        if subject.engine == DOUBLE:
            return
        for index, sample in enumerate(samples):
            if self.cut(samples, index, 0.5 * self.settings.seconds):
                break
            self.step(f"running the candidate on the input {sample.name!r}")
            try:
                sample.after = subject.run(self.plan.feeds(sample))
            except Exception as error:  # noqa: BLE001  the engine raises many types
                sample.failure = f"the candidate does not run: {first_line(error)}"
                del samples[index + 1 :]
                break
        subject.release()
        if not any(sample.failure for sample in samples):
            self.record("candidate", subject, samples, drift)

    def compare(self, samples: list[Sample], drift: Drift) -> Iterator[Case]:
        """The comparisons with the float64 truth, as far as the time budget reaches."""
        longest, told = 0.0, list[tuple[Sample, Evaluation]]()
        engine = self.pair.candidate.engine
        for index, sample in enumerate(samples):
            began = time.monotonic()
            if self.cut(samples, index, longest):
                break
            if index and self.pair.weight_bytes > HEAVY and sample.identical():
                same = tuple(identical(name, array) for name, array in sample.before.items())
                yield Case(sample.name, engine, same, "", sample.shapes)
                continue
            self.step(f"evaluating the input {sample.name!r} in float64")
            observe = drift.observe if sample is self.tapped(samples) else None
            truth = self.yardstick.truth(sample, observe)
            if truth and (overflow := self.yardstick.overflow(truth)):
                yield Case(sample.name, DOUBLE, (), overflow, sample.shapes)
                continue
            if truth and (engine == DOUBLE or not told):
                told.append((sample, truth))
            self.yardstick.lay(sample, truth)
            for name, moved in sample.moved.items():
                if not moved < float("inf"):
                    self.note(f"output {name!r} was not compared on the input {sample.name!r}: "
                              f"rounding alone can turn it into something else")  # fmt: skip
            if sample.failure:
                failed = (Comparison("", reason=sample.failure),)
                yield Case(sample.name, engine, failed, "", sample.shapes)
            elif engine != DOUBLE:
                found = tuple(sample.comparisons(sample.after))
                self.keep_picture(sample, found)
                yield Case(sample.name, engine, found, "", sample.shapes)
            longest = max(longest, time.monotonic() - began)
        self.pair.reference.release()
        yield from self.algebra(told)
        self.pair.candidate.release()

    def algebra(self, told: Sequence[tuple[Sample, Evaluation]]) -> Iterator[Case]:
        """Both models in float64."""
        for sample, truth in told:
            self.step("evaluating the candidate in float64")
            sample.double = self.yardstick.algebra(sample, truth)
            if sample.double is not None:
                found = tuple(sample.double.comparisons(sample.double.after))
                yield Case(sample.name, DOUBLE, found, "", sample.shapes)

    def keep_picture(self, sample: Sample, found: Sequence[Comparison]) -> None:
        """Keeps the details of the output that used most of its tolerance so far."""
        measurable = [c for c in found if not c.reason and c.dtype in UNIT_ROUNDOFF]
        worst = max(measurable, key=lambda c: c.used, default=None)
        if worst is None or (self.picture and worst.used <= self.picture[0]):
            return
        arrays = (sample.before, sample.after, sample.exact)
        values = [np.asarray(a[worst.output], np.float64) for a in arrays]
        finite = np.all([np.isfinite(v) for v in values], axis=0)
        chosen = picture(worst.output, sample.name, *(v[finite] for v in values))
        self.picture = (worst.used, chosen)

    def probes(self) -> tuple[Probe, ...]:
        """The sites by themselves; those that could be run."""
        found: list[Probe] = []
        try:
            for probe in self.pair.probes():
                if self.left <= 0:
                    self.note("out of time before every site was probed; raise --timeout")
                    break
                self.step(f"probing the site {probe.site!r}")
                found.append(probe)
        except DwrError as error:
            self.note(f"not every site was probed: {error}")
        return tuple(found)


def _differ(one: Arrays, two: Arrays) -> bool:
    return any(array.tobytes() != two[name].tobytes() for name, array in one.items())
