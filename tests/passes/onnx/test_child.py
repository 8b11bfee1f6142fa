"""What becomes of work in a child process: its outcome, its errors, its end."""

from __future__ import annotations

import os

import pytest

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx import child

SERVE = "from dwr_rewrite.errors import DwrError; from dwr_rewrite.passes.onnx import child\n"


def run(code: str, job: object = None, timeout: float = 60.0):
    steps: list[str] = []
    outcome = child.run(["-c", SERVE + code], job, timeout, steps.append)
    return outcome, steps


def test_the_outcome_the_steps_and_the_warnings_come_back():
    work = """def work(job):
        child.tell('one "step"'); child.tell("another")
        import sys; sys.stderr.write("2026 [W:onnxruntime:, a.cc] b\\n[E:onnxruntime] c\\nno\\n")
        return [job, job]"""
    (outcome, warnings), steps = run(f"{work}\nchild.serve(work)", {"a": 1})
    assert outcome == [{"a": 1}, {"a": 1}]
    assert warnings == 2
    assert steps == ['one "step"', "another"]


def test_an_error_of_the_worker_is_one_in_the_parent():
    with pytest.raises(DwrError, match=r"^the input 'x' is odd$") as failure:
        run("def work(job): raise DwrError(f'the input {job!r} is odd')\nchild.serve(work)", "x")
    assert not isinstance(failure.value, child.ChildError)


ENDS = {
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": r"^ended with SIGSEGV while here$",
    "import os; os._exit(3)": r"^ended with exit code 3 while here$",
    "raise KeyError('lost')": r"^ended with exit code 1 while here \(KeyError: 'lost'\)$",
}


@pytest.mark.parametrize("code", ENDS)
def test_a_crash_is_a_sentence(code):
    with pytest.raises(child.ChildError, match=ENDS[code]) as failure:
        run(f"child.tell('here')\n{code}")
    assert not failure.value.late


def test_a_hang_is_ended():
    with pytest.raises(child.ChildError, match=r"^took longer than 0\.5 s") as failure:
        run("import time; time.sleep(60)", timeout=0.5)
    assert failure.value.late


# ------------------------------------------------------------------------------ piece by piece

PIECES = """
import os, signal, time
def work(job):
    for piece in job:
        child.tell(f"at {piece}")
        if piece == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if piece == "odd":
            raise DwrError("a piece is odd")
        time.sleep(60 if piece == "hang" else 0.2 if piece == "slow" else 0)
        yield [piece, os.getpid()]
child.serve(work)"""


def pieces(job: list[str], timeout: float = 60.0):
    return child.stream(["-c", SERVE + PIECES], job, timeout)


def test_pieces_come_in_their_order():
    assert [piece for piece, _ in pieces(["a", "b", "a"])] == ["a", "b", "a"]
    assert list(pieces([])) == []


STREAM_ENDS = {
    "crash": (child.ChildError, "^ended with SIGSEGV while at crash$"),
    "odd": (DwrError, "^a piece is odd$"),
    "hang": (child.ChildError, r"^took longer than 2 s \(while at hang\)$"),
}


@pytest.mark.parametrize("end", STREAM_ENDS)
def test_what_was_there_before_the_end_is_not_lost(end):
    kind, message = STREAM_ENDS[end]
    found = []

    def collect():
        for piece, _ in pieces(["a", "b", end, "c"], 2.0):
            found.append(piece)

    with pytest.raises(kind, match=message):
        collect()
    assert found == ["a", "b"]


def test_the_time_is_that_of_one_piece():
    found = list(pieces(["slow"] * 12, 2.0))
    assert len(found) == 12


def test_closing_ends_the_child():
    stream = pieces(["a", "hang"])
    _, pid = next(stream)
    stream.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
