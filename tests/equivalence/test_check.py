"""The course of a check, on a front end of a few lines: float32 matrices instead of networks."""

from __future__ import annotations

import numpy as np
import pytest

from dwr_rewrite.equivalence import check as checking
from dwr_rewrite.equivalence.check import Check
from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.equivalence.samples import KINDS, Declared
from dwr_rewrite.equivalence.subject import Evaluation, Site
from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.errors import DwrError

ROWS, COLUMNS = 8, 70


class Matrix:
    """y = W x. Its sites are its rows: row i computes the value ``row i``."""

    engine = "numpy float32"
    outputs = ("y",)

    def __init__(self, weight):
        self.weight, self.exact_runs, self.fault = weight.astype(np.float32), 0, None
        self.declared = {"x": Declared("float32", (ROWS, COLUMNS))}

    def run(self, feeds):
        if self.fault:
            raise RuntimeError(self.fault)
        return {
            "y": (feeds["x"] * self.weight).sum(1, dtype=np.float32) * np.ones(9, "f4")[:, None]
        }

    def _rows(self, x, perturb):
        rounding, products = Rounding(), x.astype(np.float64) * self.weight.astype(np.float64)
        exact = products.sum(1)
        if perturb is None:
            return exact
        bound = rounding.of_sum(np.abs(products).sum(1), COLUMNS)
        return exact + np.where(perturb.random(ROWS) < 0.5, bound, -bound)

    def exact(self, feeds, perturb=None, observe=None):
        self.exact_runs += 1
        rows = self._rows(feeds["x"], perturb)
        for index, value in enumerate(rows):
            if observe:
                observe(f"row {index}", np.array([value]))
        return Evaluation({"y": rows * np.ones((9, 1))})

    def tap(self, feeds, values, observe):
        rows = self.run(feeds)["y"][0]
        for value in values:
            observe(value, rows[int(value.split()[1]) : int(value.split()[1]) + 1])

    def release(self):
        pass


class Matrices:
    """Two matrices; what changed are their rows."""

    proof, operators, weight_bytes = None, ROWS, 0
    rounding = Rounding()

    def __init__(self, reference, candidate):
        self.reference, self.candidate = Matrix(reference), Matrix(candidate)
        self.sites = [
            Site(f"site {i}", f"row {i}", "float32", COLUMNS, "keep") for i in range(ROWS)
        ]
        self.changed = [f"site {i}" for i in range(ROWS) if (reference[i] != candidate[i]).any()]
        self.saved, self.versions = [], {"numpy": np.__version__}

    def probes(self):
        return ()

    def hybrid(self, names):
        rows = [int(name.split()[1]) for name in names]
        weight = self.reference.weight.copy()
        weight[rows] = self.candidate.weight[rows]
        return Matrix(weight)

    def save_hybrid(self, names, path):
        if path.suffix != ".npy":
            raise DwrError("only .npy files can be written")
        self.saved.append((tuple(names), path))


WEIGHT = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def wrong(*rows: int) -> np.ndarray:
    """Row 0 is changed by less than rounding shows, the given rows by 1 %."""
    weight = WEIGHT.copy()
    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(np.inf))
    weight[list(rows)] *= np.float32(1.01)
    return weight


def test_equal_models_are_equivalent_on_every_kind():
    found = Check(Matrices(WEIGHT, WEIGHT), Settings()).run()
    assert found.verdict == "equivalent"
    assert [case.name for case in found.cases] == [*KINDS, "normal"]
    assert [tap.value for tap in found.taps] == [f"row {i}" for i in range(ROWS)]
    assert found.longest == ("site 0", COLUMNS)


@pytest.mark.parametrize("rows", [(3,), (2, 6)])
def test_the_rows_to_blame_are_found_and_written(rows, tmp_path):
    pair = Matrices(WEIGHT, wrong(*rows))
    found = Check(pair, Settings(minimal=tmp_path / "minimal.npy")).run()
    assert found.verdict == "not equivalent"
    assert found.culprits is not None
    blamed = set(found.culprits.sites)
    assert blamed <= {f"site {row}" for row in rows}
    assert len(blamed) == 1, "each of them fails by itself"
    assert pair.saved == [(found.culprits.sites, tmp_path / "minimal.npy")]
    assert found.culprits.model == str(tmp_path / "minimal.npy")
    furthest = max(found.taps, key=lambda tap: tap.candidate.largest / tap.scale)
    assert furthest.site in {f"site {row}" for row in rows}, "the drift shows the same place"


def test_a_minimal_model_that_cannot_be_written_is_a_note(tmp_path):
    found = Check(Matrices(WEIGHT, wrong(3)), Settings(minimal=tmp_path / "minimal.txt")).run()
    assert found.culprits is not None
    assert found.culprits.model is None
    assert any("only .npy files" in note for note in found.notes)


def test_without_time_the_failure_stands_and_the_blame_is_left_open():
    found = Check(Matrices(WEIGHT, wrong(3)), Settings(budget=0.0)).run()
    assert found.verdict == "not equivalent"
    assert found.culprits is None
    assert any("before the site to blame was found" in note for note in found.notes)


def test_a_candidate_that_does_not_run_fails_with_its_reason():
    pair = Matrices(WEIGHT, WEIGHT)
    pair.candidate.fault = "no such kernel"
    found = Check(pair, Settings()).run()
    assert found.failures[0].startswith("the candidate does not run: no such kernel")


def test_a_reference_that_gives_two_results_is_not_checked():
    pair = Matrices(WEIGHT, WEIGHT)
    noise = np.random.default_rng(0)
    right = pair.reference.run
    pair.reference.run = lambda feeds: {"y": right(feeds)["y"] + noise.random(ROWS, np.float32)}
    found = Check(pair, Settings()).run()
    assert found.verdict == "not checked"
    assert found.cases[0].skipped == "the reference gives two results for one input"


def test_a_large_model_is_evaluated_in_float64_only_where_the_bits_differ(monkeypatch):
    runs = []
    for weight_bytes in (0, checking.HEAVY + 1):
        pair = Matrices(WEIGHT, WEIGHT)
        pair.weight_bytes = weight_bytes
        assert Check(pair, Settings()).run().verdict == "equivalent"
        runs.append(pair.reference.exact_runs)
    assert runs == [2 * len(KINDS), 2], "the truth and its movement"
    pair = Matrices(WEIGHT, wrong(3))
    pair.weight_bytes = checking.HEAVY + 1
    found = Check(pair, Settings()).run()
    assert found.verdict == "not equivalent"
    assert pair.reference.exact_runs == 2 * len(KINDS)


def test_sites_that_cannot_be_tapped_are_a_note_and_no_failure():
    pair = Matrices(WEIGHT, WEIGHT)

    def tap(feeds, values, observe):
        raise RuntimeError("no taps here")

    pair.candidate.tap = tap
    found = Check(pair, Settings()).run()
    assert (found.verdict, found.taps, found.tapped) == ("equivalent", (), "")
    assert any("no taps here" in note for note in found.notes)
