"""Tuning on several GPUs: ``torchrun --nproc-per-node N -m dwr_rewrite.tune MODEL.onnx``.

In a script that torchrun starts, :func:`share` does the same for any questions and bench.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import count

from dwr_rewrite.errors import DwrError
from dwr_rewrite.timing import Clock
from dwr_rewrite.tuning import Answer, Bench, Question, sharing
from dwr_rewrite.tuning.tune import Memory, Progress, silent, tune
from dwr_rewrite.workload import Workload

MEETING = timedelta(minutes=15)
"""For which a worker waits for the others to start, and for what rank 0 decides."""

_calls = count()
"""Every call has keys of its own in the store; the processes make the same calls."""


def local_rank() -> int:
    """Number of this process on its host, as torchrun gives it; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_workers() -> int:
    """How many processes there are on this host, as torchrun gives it; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, as torchrun gives it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def workers() -> int:
    """How many processes there are, as torchrun gives it; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def by_rank_0(decide: Callable[[], str]) -> str:
    """What rank 0 decides, in every process.

    Args:
        decide: called in rank 0 alone.

    Raises:
        DwrError: the workers do not meet, or rank 0 does not come to a decision.
    """
    if workers() == 1:
        return decide()
    store = _store()
    if rank() == 0:
        decided = decide()
        store.set("decided", decided)
        return decided
    try:
        return store.get("decided").decode()
    except RuntimeError as error:
        raise DwrError(f"rank 0 has decided nothing: {error}; look at its messages") from error


def share(
    questions: Sequence[Question],
    bench: Bench,
    database: Memory | None,
    *,
    budget: float,
    progress: Progress = silent,
    clock: Clock = time.monotonic,
    patience: float = sharing.PATIENCE,
) -> dict[Workload, Answer]:
    """Measures together with the other processes that torchrun started.

    It needs no process group, and leaves one that exists alone. Without torchrun this process
    measures everything itself. See :func:`dwr_rewrite.tuning.sharing.share`.

    Args:
        questions: what is asked; the same in every process.
        bench: this process's own device, number :func:`local_rank`.
        database: where its answers go; None for nowhere.
        budget: seconds for measuring; what runs when they end is finished.
        progress: told what is measured, and how many questions are answered by anybody.
        clock: what the budget is measured by.
        patience: seconds without any answer after which rank 0 takes a worker for lost.

    Returns:
        What this process knows; in rank 0 that is everything.

    Raises:
        DwrError: the workers do not meet or lose each other, a bench answers something else than
            it was asked, or the database fails; what was measured is stored.
    """
    if workers() == 1:
        return tune(questions, bench, database, budget=budget, progress=progress, clock=clock)
    return sharing.share(
        questions, bench, database, _store(), rank=rank(), workers=workers(), budget=budget,
        progress=progress, clock=clock, patience=patience,
    )  # fmt: skip


def _store() -> sharing.Store:
    """What torchrun's processes have in common.

    Raises:
        DwrError: they do not find each other.
    """
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=MEETING))
    except (RuntimeError, ValueError) as error:
        raise DwrError(f"the workers that torchrun started do not find each other: {error}; check "
                       f"MASTER_ADDR and MASTER_PORT, or start it again") from error  # fmt: skip
    return PrefixStore(f"dwr-rewrite/{next(_calls)}", store)


def main() -> None:
    """Entry point of ``python -m dwr_rewrite.tune``."""
    from dwr_rewrite.cli.tune import main

    main()


if __name__ == "__main__":
    main()
