"""What the processes of test_tune.py run; `torchrun` or plain variables say which one this is.

Arguments: a folder; the rank that vanishes, or -1; after how many answers; seconds of a question.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

from dwr_rewrite.tune import by_rank_0, local_rank, rank, share
from dwr_rewrite.tuning.database import Database
from tests.tuning.fakes import FakeBench, question

QUESTIONS = [question(channels) for channels in range(8, 8 + 16)]


def main(folder: Path, vanishing: int, after: int, seconds: float) -> None:
    log = folder / f"measured.{rank()}"
    places = {asked.workload: place for place, asked in enumerate(QUESTIONS)}

    class Bench(FakeBench):
        def measure(self, questions):
            for asked in questions:
                if rank() == vanishing and len(self.asked) == after:
                    os._exit(9)
                time.sleep(seconds)
                with log.open("a") as file:
                    file.write(f"{places[asked.workload]}\n")
                yield from super().measure([asked])

    bench = Bench()
    dist.init_process_group("gloo")
    assert by_rank_0(lambda: f"by {rank()}") == "by 0"
    with Database.open(folder / f"{local_rank()}.sqlite3") as database:
        for _ in range(2):  # the second time everything is known
            found = share(QUESTIONS, bench, database, budget=60, patience=3)
    (folder / f"found.{rank()}").write_text(str(len(found)))
    if vanishing < 0:
        dist.destroy_process_group()
    else:
        os._exit(0)  # without the other one gloo cannot come to its end


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
