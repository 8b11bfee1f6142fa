"""What a comparison of two models without running them finds."""

from __future__ import annotations

from dataclasses import dataclass, field

from dwr_rewrite.equivalence.evidence import Lemma, Proof


@dataclass
class Findings:
    """What was found so far.

    Attributes:
        lemmas: by the name of the site.
        differences: sentences, by the name of the module or node that differs.
        identical: modules and nodes that are the same.
        helpers: nodes that only make the packed weights.
    """

    lemmas: dict[str, Lemma] = field(default_factory=dict[str, Lemma])
    differences: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    identical: int = 0
    helpers: int = 0

    def differs(self, name: str, sentence: str) -> None:
        """Adds a difference."""
        self.differences.setdefault(name, []).append(sentence)

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the modules and nodes that are not the same."""
        return tuple(dict.fromkeys((*self.lemmas, *self.differences)))

    @property
    def proof(self) -> Proof:
        """What all of it shows."""
        sentences = (text for texts in self.differences.values() for text in texts)
        return Proof(tuple(self.lemmas.values()), self.identical, self.helpers, tuple(sentences))


def where(name: str) -> str:
    """A module's name for a sentence."""
    return repr(name) if name else "the model"


def became(what: str, before: object, after: object) -> str:
    """A sentence about a value that is another one."""
    return f"{what} is {_short(before)} and became {_short(after)}"


def _short(value: object) -> str:
    text = value.__name__ if isinstance(value, type) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
