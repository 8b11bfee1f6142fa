"""Whether a value of one model is that of another, as far as names and stored bits tell."""

from __future__ import annotations

from dwr_rewrite.passes.onnx import bits
from dwr_rewrite.passes.onnx.definitions import Definition, Definitions, Fed, Place, Stored
from dwr_rewrite.passes.onnx.graphs import Scope

ANOTHER = "is another one"
"""How a sentence on two stored values that differ begins."""


class Correspondence:
    """The values of two models, side by side.

    Attributes:
        reference: values of the one.
        candidate: values of the other.
    """

    def __init__(self, reference: Definitions, candidate: Definitions) -> None:
        """Compares nothing yet."""
        self.reference, self.candidate = reference, candidate
        self._compared: dict[tuple[Scope, str, Scope, str], str] = {}

    def difference(self, r: Scope, expected: str, c: Scope, name: str) -> str:
        """How two values differ that should be one; what nodes compute for them is not compared.

        Args:
            r: a scope of the reference.
            expected: what the value is called there.
            c: a scope of the candidate.
            name: what it is called there.

        Returns:
            What follows the candidate's name in a sentence; empty where they correspond. Two stored
            values with the same bits do, whatever they are called.

        Raises:
            DwrError: a tensor is corrupt.
        """
        one, other = self.reference.find(r, expected), self.candidate.find(c, name)
        if isinstance(one, Stored) and isinstance(other, Stored):
            key = self._key(r, expected, c, name)
            if key not in self._compared:
                self._compared[key] = bits.difference(one.content, other.content)
            return self._compared[key] and f"{ANOTHER}: {self._compared[key]}"
        if expected != name:
            return f"stands where the reference reads {expected!r}"
        if type(one) is not type(other):
            return f"is {_kind(other)}; in the reference it is {_kind(one)}"
        return ""

    def is_compared(self, r: Scope, c: Scope, name: str) -> bool:
        """Whether the two stored values of this name have been compared already."""
        return self._key(r, name, c, name) in self._compared

    def _key(self, r: Scope, expected: str, c: Scope, name: str) -> tuple[Scope, str, Scope, str]:
        return self.reference.owner(r, expected), expected, self.candidate.owner(c, name), name


def _kind(found: Definition | None) -> str:
    if found is None:
        return "not there"
    return {Place: "computed", Stored: "stored", Fed: "an input"}[type(found)]
