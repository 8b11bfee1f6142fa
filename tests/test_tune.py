"""``dwr_rewrite.tune`` among real processes that meet over torch.distributed, on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dwr_rewrite import tune
from dwr_rewrite.errors import DwrError
from dwr_rewrite.tuning.database import Database
from tests.tune_worker import QUESTIONS
from tests.tuning.fakes import ABACUS, FakeBench

ROOT = Path(__file__).parent.parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def measured(folder: Path) -> dict[int, list[int]]:
    """What each rank measured, by its place among the questions."""
    files = sorted(folder.glob("measured.*"))
    return {int(f.suffix[1:]): [int(line) for line in f.read_text().split()] for f in files}


def once() -> Counter[int]:
    return Counter(range(len(QUESTIONS)))


def held(folder: Path, rank: int) -> set[int]:
    """What the database of a rank holds."""
    with Database.open(folder / f"{rank}.sqlite3") as database:
        return {i for i, asked in enumerate(QUESTIONS) if database.get(ABACUS, asked) is not None}


def test_two_processes_of_torchrun_measure_every_question_once(tmp_path):
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node", "2", "--master-port", str(free_port()), "-m",
         "tests.tune_worker", str(tmp_path), "-1", "0", "0.05"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_rank = measured(tmp_path)
    assert Counter([*by_rank[0], *by_rank[1]]) == once()
    assert set(by_rank) == {0, 1}  # both had something to do
    assert (tmp_path / "found.0").read_text() == str(len(QUESTIONS))
    assert held(tmp_path, 0) == set(range(len(QUESTIONS)))  # its disk is not that of rank 1
    assert held(tmp_path, 1) == set(by_rank[1])


def test_a_worker_that_vanishes_loses_nothing_that_was_measured(tmp_path):
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.tune_worker", str(tmp_path), "1", "3", "0.1"],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 9], errors
    by_rank = measured(tmp_path)
    assert len(by_rank[1]) == 3
    assert held(tmp_path, 1) == set(by_rank[1])
    assert Counter([*by_rank[0], *by_rank[1]]) == once()
    assert held(tmp_path, 0) == set(range(len(QUESTIONS)))
    assert (tmp_path / "found.0").read_text() == str(len(QUESTIONS))


def test_without_torchrun_one_process_measures_everything(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    bench = FakeBench()
    found = tune.share(QUESTIONS, bench, None, budget=99, clock=bench.clock)
    assert len(found) == len(bench.asked) == len(QUESTIONS)
    assert (tune.rank(), tune.local_rank()) == (0, 0)


@pytest.mark.parametrize("variables", [{}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "many"}])
def test_workers_that_do_not_meet_are_a_sentence(monkeypatch, variables):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DwrError, match=r"do not find each other: .*MASTER_ADDR and MASTER_PORT"):
        tune.share(QUESTIONS, FakeBench(), None, budget=9)
