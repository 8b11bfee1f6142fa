"""The child process of a verification: ``python -m dwr_rewrite.passes.onnx.worker FOLDER``."""

from __future__ import annotations

from dataclasses import replace

from dwr_rewrite.equivalence.check import Check
from dwr_rewrite.equivalence.verification import Verification
from dwr_rewrite.passes.onnx.check import Job
from dwr_rewrite.passes.onnx.child import serve, tell
from dwr_rewrite.passes.onnx.pair import OnnxPair


def check(job: Job) -> Verification:
    """What is to be observed of a job's two files.

    Raises:
        DwrError: the job's inputs do not fit.
    """
    tell("reading the models")
    pair = OnnxPair(job.reference, job.candidate, job.sites)
    found = Check(pair, job.settings, tell).run()
    return replace(found, notes=(*pair.notes, *found.notes))


if __name__ == "__main__":
    serve(check)
