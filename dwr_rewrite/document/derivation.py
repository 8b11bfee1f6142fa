"""How the tolerance of a report follows, in sentences with its own figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dwr_rewrite.document import digest
from dwr_rewrite.document.reading import Document
from dwr_rewrite.document.wording import number, plural, power
from dwr_rewrite.equivalence.tolerance import UNIT_ROUNDOFF

GAMMA = "\N{GREEK SMALL LETTER GAMMA}"


class Step(NamedTuple):
    """One step of the derivation: a term, and the sentences about it."""

    term: str
    text: str


def derivation(document: Document) -> list[Step]:
    """The steps from the element types to the verdict; empty where nothing was compared."""
    check = document["verification"]
    return [] if check is None else [*_operators(check), *_outputs(document), *_verdict(check)]


def _operators(check: Document) -> Iterator[Step]:
    rounding, rule = check["rounding"], check["rule"]
    yield Step(
        "Yardstick",
        "Both models are compared with a float64 evaluation of the reference, so that the "
        "reference's own rounding shows as well.",
    )
    yield Step(
        "Stored results",
        f"Each is rounded by up to u = {_unit(rounding['store'])} of itself. Below "
        f"{number(rounding['underflow'])} the type rounds by absolute steps.",
    )
    yield Step(
        "Sums of products",
        f"They accumulate with u = {_unit(rounding['accumulate'])}. With high probability a sum "
        f"of n products is off by at most {GAMMA}(n) = min(n, 2√n) u of its sum of magnitudes "
        f"(Higham and Mary 2019).{_longest(check)}",
    )
    multiply = float(rounding["multiply"])
    yield Step(
        "TF32",
        f"On: every factor is first rounded by up to {power(multiply)}, which adds "
        f"{number(2 * multiply)} to {GAMMA}."
        if multiply
        else "Off: factors keep the precision of their type.",
    )
    yield Step(
        "Winograd",
        f"Assumed possible: 3x3 convolutions of stride 1 may be computed by F(4, 3), which rounds "
        f"{rule['winograd']} times more along each axis; their {GAMMA} is as much larger."
        if rounding["winograd"]
        else "Off: convolutions are plain sums of products.",
    )


def _unit(value: float) -> str:
    names = {unit: name for name, unit in UNIT_ROUNDOFF.items()}
    name = f", {names[value]}" if value in names else ""
    return f"{number(value)} ({power(value)}{name})"


def _longest(check: Document) -> str:
    if check["longest"] is None:
        return ""
    site, terms = check["longest"]
    gamma = number(check["rule"]["gamma"])
    return f" The longest sum of a site has n = {terms:,} ({site}): {GAMMA} = {gamma}."


def _outputs(document: Document) -> Iterator[Step]:
    trusted = number(document["verification"]["rule"]["trusted"])
    yield Step(
        "Movement",
        "Every operator's result in the float64 evaluation is moved by its own bound, with random "
        "signs. How far an output moves then is its movement; it contains the condition of this "
        "network on this input.",
    )
    yield Step(
        "Tolerance",
        "2 (error of the reference + movement). The factor 2 stands for two independent "
        f"roundings, the reference's and the candidate's.{_example(document)}",
    )
    found = [f for case, f in digest.compared(document) if case["engine"] != digest.DOUBLE]
    doubted = sum(comparison["by"] == "difference" for comparison in found)
    yield Step(
        "In float64",
        "Where both models are evaluated in float64, the algebra is seen without the rounding: "
        "they may differ by 4 movements of float64.",
    )
    yield Step(
        "Doubt",
        f"Where the reference is more than {trusted} movements away from the float64 evaluation, "
        f"or there is none, that is not the yardstick, and the two models may differ by 4 "
        f"movements: {f'so in {doubted} of' if doubted else 'in none of'} "
        f"{plural(len(found), 'comparison')}.",
    )


def _example(document: Document) -> str:
    pair = digest.worst(document)
    if pair is None or pair[1]["by"] != "error" or pair[1]["reference"] is None:
        return ""
    case, found = pair
    return (
        f" For output {found['output']!r} on input {case['name']!r} ({case['engine']}): "
        f"2 ({number(found['reference']['largest'])} + {number(found['movement'])}) = "
        f"{number(found['tolerance'])}."
    )


def _verdict(check: Document) -> Iterator[Step]:
    ratios, rule = check["ratios"], check["rule"]
    factor, needs = number(rule["factor"]), rule["factor_needs"]
    decided = sum(ratio["allowed"] is not None for ratio in ratios)
    yield Step(
        f"Factor {factor}",
        f"A bound on every rounding is loose, often a hundred times the error. So the candidate's "
        f"error, taken over all inputs (root mean square, in units of the movement, so that no "
        f"input drowns the others), must also stay within {factor} times the reference's own. "
        f"Below {needs} inputs that ratio may be large by luck and decides nothing. Here it "
        f"decided for {decided} of {plural(len(ratios), 'output')}.",
    )
    yield Step(
        "Verdict",
        "Equivalent only if no comparison, ratio, lemma, probe or gradient failed, and if each "
        "output was once compared with a tolerance smaller than its own values.",
    )
