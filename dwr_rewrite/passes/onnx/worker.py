"""The child process of a verification: ``python -m dwr_rewrite.passes.onnx.worker JOB``.

Writes one JSON line for each step to standard output, and the outcome to the job's result file.
"""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

from dwr_rewrite.equivalence.check import Check
from dwr_rewrite.equivalence.samples import InputError
from dwr_rewrite.equivalence.verification import Verification
from dwr_rewrite.passes.onnx.check import Job
from dwr_rewrite.passes.onnx.pair import OnnxPair


def check(job: Job) -> Verification:
    """What is to be observed of a job's two files.

    Raises:
        InputError: the job's inputs do not fit.
    """
    tell("reading the models")
    pair = OnnxPair(job.reference, job.candidate, job.sites)
    found = Check(pair, job.settings, tell).run()
    found = replace(found, notes=(*pair.notes, *found.notes))
    if found.culprits is not None and job.minimal is not None:
        pair.save_hybrid(found.culprits.sites, job.minimal)
        found = replace(found, culprits=replace(found.culprits, model=str(job.minimal)))
    return found


def tell(what: str) -> None:
    """Tells the parent what is going on."""
    print(json.dumps(what), flush=True)


def main(path: str) -> None:
    """Runs the job and writes its outcome: a Verification, or the message of an InputError."""
    job: Job = pickle.loads(Path(path).read_bytes())  # noqa: S301  the parent wrote it
    try:
        outcome: Verification | str = check(job)
    except InputError as error:
        outcome = str(error)
    job.result.write_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    main(sys.argv[1])
