"""The smallest part of a set of changes that still fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def minimize(names: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """A failing subset from which no single name can be left out.

    Delta debugging: Zeller and Hildebrandt 2002, Simplifying and isolating failure-inducing input.

    Args:
        names: the changes; all of them together fail.
        fails: whether a subset fails. It is not asked twice for the same one.

    Returns:
        The subset, in the order of ``names``.
    """
    asked: dict[tuple[str, ...], bool] = {}

    def ask(subset: Sequence[str]) -> bool:
        key = tuple(subset)
        if key not in asked:
            asked[key] = fails(subset)
        return asked[key]

    current, parts = list(names), 2
    while len(current) > 1:
        size = -(-len(current) // parts)
        starts = range(0, len(current), size)
        chunks = [current[i : i + size] for i in starts]
        rests = [current[:i] + current[i + size :] for i in starts] if parts > 2 else []
        if chunk := next(filter(ask, chunks), None):
            current, parts = chunk, 2
        elif rest := next(filter(ask, rests), None):
            current, parts = rest, max(parts - 1, 2)
        elif parts < len(current):
            parts = min(len(current), parts * 2)
        else:
            break
    return tuple(current)
