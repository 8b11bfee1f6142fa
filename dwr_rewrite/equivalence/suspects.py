"""Which of the changes make a check fail."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from dwr_rewrite.equivalence.evidence import Culprits
from dwr_rewrite.equivalence.minimize import minimize
from dwr_rewrite.equivalence.sample import Sample, tensors
from dwr_rewrite.equivalence.samples import Arrays
from dwr_rewrite.equivalence.subject import Pair
from dwr_rewrite.equivalence.verification import DOUBLE, Case, Verification


def find_culprits(
    pair: Pair,
    found: Verification,
    samples: Sequence[Sample],
    feeds: Callable[[Sample], Arrays],
    late: Callable[[], bool] = lambda: False,
) -> Culprits | None:
    """The smallest set of changes with which the same comparison still fails.

    Args:
        pair: the models.
        found: a verification that failed.
        samples: what was run.
        feeds: gives the inputs of a sample.
        late: whether the time is up.

    Returns:
        None where all changes together do not fail in the same way.

    Raises:
        TimeoutError: the time is up.
    """
    tried = 0

    def fails(names: Collection[str]) -> bool:
        nonlocal tried
        if late():
            raise TimeoutError
        tried += 1
        try:
            hybrid = pair.hybrid(names)
            return _still_fails(found, samples, lambda sample, double: (
                tensors(hybrid.exact(feeds(sample)).outputs) if double
                else hybrid.run(feeds(sample))
            ))  # fmt: skip
        except Exception:  # noqa: BLE001  it does not load or run: the same failure only if that was it
            return any(sample.failure for sample in samples)

    named = _named(found)
    if named:
        return Culprits(named, 0)
    if not fails(pair.changed):
        return None
    return Culprits(minimize(pair.changed, fails), tried)


def _named(found: Verification) -> tuple[str, ...]:
    """Sites that the proof or a probe has already named."""
    lemmas = found.proof.lemmas if found.proof else ()
    refuted = [lemma.site for lemma in lemmas if lemma.status == "refuted"]
    return tuple(refuted or [probe.site for probe in found.probes if probe.leaking])


def _still_fails(
    found: Verification,
    samples: Sequence[Sample],
    run: Callable[[Sample, bool], Arrays],
) -> bool:
    """Whether what failed for the candidate fails for another model too."""
    by_name = {sample.name: sample for sample in samples}
    failing = next((case for case, c in found.compared if not c.passed), None)
    if failing is not None:
        sample, double = by_name[failing.name], failing.engine == DOUBLE
        compared = sample.double if double and sample.double else sample
        return not all(c.passed for c in compared.comparisons(run(sample, double)))
    cases = [
        Case(sample.name, "hybrid", tuple(sample.comparisons(run(sample, False))))
        for sample in samples
    ]
    return not all(ratio.passed for ratio in Verification(tuple(cases)).ratios)
