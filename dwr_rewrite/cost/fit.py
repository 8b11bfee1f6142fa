"""The factors of an efficiency from measured times, and how good a model they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwr_rewrite.cost.efficiency import Efficiency, Factors, Key, keys
from dwr_rewrite.cost.errors import Case, Errors, distinct, errors
from dwr_rewrite.cost.model import Model
from dwr_rewrite.cost.target import Target
from dwr_rewrite.errors import DwrError
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.workload import Workload

Array = NDArray[np.float64]

FEWEST = 12
"""Times that a key needs for factors of its own: four for each of the three."""

LAYERS = 4
"""Layers that these must come from, so that no single one speaks for all."""

ROUNDS, CLOSE = 100, 1e-5
"""Most steps of the least squares, and the step in the logarithms at which it ends."""

LEAST = 1e-9
"""Damping that always stays, so that a factor of which the times say nothing stays where it is."""


@dataclass(frozen=True)
class _Rows:
    """All times, with what limits them.

    Attributes:
        layers: [n] whose they are.
        bounds: [n, 3]; see :class:`~dwr_rewrite.cost.model.Bounds`.
        seconds: [n].
        under: the rows under each key.
    """

    layers: NDArray[Any]
    bounds: Array
    seconds: Array
    under: Mapping[Key, NDArray[np.int64]]

    @classmethod
    def of(cls, target: Target, cases: Sequence[Case]) -> _Rows:
        model, under = Model(target), dict[Key, list[int]]()
        found = distinct(cases)
        for row, (case, recipe) in enumerate(found):
            for key in keys(case.workload, recipe):
                under.setdefault(key, []).append(row)
        return cls(
            np.array([case.layer for case, _ in found]),
            np.array([model.bounds(case.workload, recipe) for case, recipe in found], float),
            np.array([case.times[recipe] for case, recipe in found]),
            {key: np.array(rows) for key, rows in under.items()},
        )

    def factors(self, key: Key, without: str | None = None) -> Factors | None:
        """Those of a key from all layers but one; None where too little is left."""
        rows = self.under[key]
        rows = rows[self.layers[rows] != without]
        if len(rows) < FEWEST or len(set(self.layers[rows])) < LAYERS:
            return None
        return least_squares(self.bounds[rows], self.seconds[rows])


def least_squares(bounds: Array, seconds: Array) -> Factors:
    """The factors with the smallest sum of squared logarithms of expected over measured.

    Levenberg and Marquardt's method in the logarithms of launch, bandwidth and rate. It starts with
    one share for both limits, the geometric mean of roofline over measurement, and with half the
    shortest time of a step as its launch.

    Args:
        bounds: [n, 3] launches, seconds for the bytes and seconds for the flops, at the peaks.
        seconds: [n] measured.
    """
    share = np.exp(np.mean(np.log(bounds[:, 1:].max(axis=1) / seconds)))
    start: Array = np.log([np.min(seconds / bounds[:, 0]) / 2, share, share])
    best, damping = start, 1e-2
    residual, jacobian = _off(best, bounds, seconds)
    for _ in range(ROUNDS):
        curvature = jacobian.T @ jacobian + damping * np.eye(3)
        step = np.linalg.solve(curvature, -jacobian.T @ residual).astype(np.float64)
        moved, along = _off(best + step, bounds, seconds)
        if moved @ moved < residual @ residual:
            best, residual, jacobian = best + step, moved, along
            damping = max(damping / 5, LEAST)
        else:
            damping *= 5
        if np.abs(step).max() < CLOSE:
            break
    launch, bandwidth, rate = (float(f"{value:.4g}") for value in np.exp(best))
    return Factors(bandwidth, rate, launch)


def _off(point: Array, bounds: Array, seconds: Array) -> tuple[Array, Array]:
    """Logarithm of expected over measured [n], and its derivatives [n, 3] by those of factors."""
    launch, bandwidth, rate = np.exp(point)
    steps = bounds[:, 0] * launch
    memory, arithmetic = bounds[:, 1] / bandwidth, bounds[:, 2] / rate
    by_memory = memory >= arithmetic
    expected = steps + np.maximum(memory, arithmetic)
    parts = [steps, -np.where(by_memory, memory, 0.0), -np.where(by_memory, 0.0, arithmetic)]
    return np.log(expected / seconds), np.stack(parts, axis=1) / expected[:, None]


def fit(
    target: Target, cases: Sequence[Case], sources: tuple[Mapping[str, str], ...] = ()
) -> Efficiency:
    """The efficiency of a target, with the errors that it has on layers it was not fitted to.

    Raises:
        DwrError: there are too few times or layers for any factor, or for judging them.
    """
    rows = _Rows.of(target, cases)
    found = {key: rows.factors(key) for key in rows.under}
    factors = {key: value for key, value in found.items() if value is not None}
    layers = len(set(rows.layers))
    if not factors or layers <= LAYERS:
        raise DwrError(
            f"{len(rows.seconds)} times of {layers} layers are too few to fit a model to; more "
            f"than {LAYERS} layers and at least {FEWEST} times of a form are needed"
        )
    known = cross_validate(target, cases)
    return Efficiency(factors, known.margin, known.to_dict(), sources)


def cross_validate(target: Target, cases: Sequence[Case]) -> Errors:
    """The errors of a model that is fitted to all layers but the one that it is asked about.

    Raises:
        DwrError: no case has a choice of forms.
    """
    rows, models = _Rows.of(target, cases), dict[str, Model]()
    for layer in dict.fromkeys(case.layer for case in cases):
        factors = _without(layer, [case for case in cases if case.layer == layer], rows)
        models[layer] = Model(target, Efficiency(factors))
    return errors(cases, lambda case, recipe: models[case.layer].seconds(case.workload, recipe))


def _without(layer: str, cases: Sequence[Case], rows: _Rows) -> dict[Key, Factors]:
    """What is fitted without a layer, for the keys that its cases look up."""
    found: dict[Key, Factors | None] = {}
    for workload, recipe in _forms(cases):
        for key in keys(workload, recipe):
            if key not in found:
                found[key] = rows.factors(key, without=layer)
            if found[key] is not None:
                break  # the wider keys are not asked
    return {key: value for key, value in found.items() if value is not None}


def _forms(cases: Sequence[Case]) -> list[tuple[Workload, Recipe]]:
    return [(case.workload, recipe) for case in cases for recipe in case.times]
