"""The devices that a plan can be made for: what a data sheet, or a calibration, says of them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import isfinite
from typing import Any

from dwr_rewrite.errors import DwrError

FMA, MATRIX = "fma.", "matrix."
"""How the measured rates of the two kinds of units are named: ``fma.float32``, ``matrix.tf32``."""

NEEDED = ("copy", "launch", "l2_bytes", "multiprocessors", "fma.float32")
"""The measured rates without which there is no target."""

POSSIBLE = frozenset({
    *NEEDED, "fma.float64", "matrix.tf32", "matrix.float16", "matrix.bfloat16",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """The peaks of a device.

    Attributes:
        name: short, as ``--target`` takes it.
        title: for a person; says which of several variants it is.
        bandwidth: of the memory, bytes a second, read and written together.
        l2_bytes: of the last level of cache.
        multiprocessors: that share the work; the cores of a CPU.
        fma: flop/s of the ordinary units, by the type that is summed in. ``float32`` is there.
        matrix: flop/s of the matrix units (tensor cores) without sparsity, by the type that is
            multiplied: ``float16``, ``bfloat16``, ``tf32``. Sums are in float32.
        launch: seconds that every step takes besides its work. No data sheet states it: 0 there.
        source: where each figure comes from, by its field.
        calibrated: the figures were measured on the device.
        aliases: other names that it is found by, among them the one that CUDA gives the device.
    """

    name: str
    title: str
    bandwidth: float
    l2_bytes: int
    multiprocessors: int
    fma: Mapping[str, float]
    matrix: Mapping[str, float]
    launch: float = 0.0
    source: Mapping[str, str] = field(default_factory=dict[str, str])
    calibrated: bool = False
    aliases: Sequence[str] = ()

    def rate(self, numbers: str, matrix: bool) -> float:
        """Flop/s for one type of factors.

        Without matrix units for the type, or where the form does not run on them, the ordinary
        units multiply: 16-bit factors and those of TF32 at the rate of float32, in which they are
        summed, and so do types whose rate is not known.

        Args:
            numbers: ``float16``, ``bfloat16``, ``tf32``, ``float32`` or ``float64``.
            matrix: the form runs on matrix units where there are any.
        """
        if matrix and numbers in self.matrix:
            return self.matrix[numbers]
        return self.fma.get(numbers, self.fma["float32"])

    @classmethod
    def measured(cls, name: str, rates: Mapping[str, float]) -> Target:
        """The target that a device turned out to be.

        Args:
            name: of the device.
            rates: ``copy`` (bytes a second, read and written together), ``launch`` (seconds),
                ``l2_bytes``, ``multiprocessors``, ``fma.float32`` and, where they were measured,
                ``fma.float64``, ``matrix.tf32``, ``matrix.float16``, ``matrix.bfloat16`` (flop/s).

        Raises:
            DwrError: a rate is missing, unknown, or not a positive finite number.
        """
        _check(name, rates)
        return cls(
            name, name, rates["copy"], int(rates["l2_bytes"]), int(rates["multiprocessors"]),
            _of(FMA, rates), _of(MATRIX, rates), rates["launch"],
            dict.fromkeys(rates, "measured on the device"), calibrated=True,
        )  # fmt: skip


def _of(units: str, rates: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(units): r for name, r in rates.items() if name.startswith(units)}


def _check(name: str, rates: Mapping[str, Any]) -> None:
    again = "calibrate it again"
    missing = [rate for rate in NEEDED if rate not in rates]
    if missing:
        raise DwrError(f"the rates of {name} lack {', '.join(missing)}; {again}")
    unknown = sorted(set(rates) - POSSIBLE)
    if unknown:
        raise DwrError(f"the rates of {name} have {', '.join(unknown)}, which no model knows; "
                       f"known: {', '.join(sorted(POSSIBLE))}")  # fmt: skip
    for rate, value in rates.items():
        if not _is_rate(value) or (rate == "multiprocessors" and value < 1):
            raise DwrError(f"{rate} of {name} is {value!r}, where a positive finite number is "
                           f"expected; {again}")  # fmt: skip


def _is_rate(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and isfinite(value) and value > 0


@cache
def targets() -> tuple[Target, ...]:
    """The devices of ``targets.toml``, whose figures are those of their makers."""
    text = (files("dwr_rewrite.cost") / "targets.toml").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = tomllib.loads(text)["target"]
    return tuple(Target(**row) for row in rows)


def find_target(name: str) -> Target:
    """The target of this name or alias; case, spaces and punctuation do not count.

    Raises:
        DwrError: there is none.
    """
    for target in targets():
        if _plain(name) in map(_plain, (target.name, *target.aliases)):
            return target
    known = ", ".join(target.name for target in targets())
    raise DwrError(
        f"no target is known as {name!r}; known: {known}. On the device itself "
        f"`dwr-bench calibrate` measures what a model needs"
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
