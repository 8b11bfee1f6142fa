"""Work in a child process, so that a crash or a hang there becomes a sentence.

The parent calls :func:`run` or :func:`stream` with the command of a worker, which calls
:func:`serve`. They share a folder: the job goes in, the outcome or its pieces come back, and
standard error is kept there. On its standard output the child writes one JSON line for each step: a
text, or the number of a piece that is there.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from dwr_rewrite.errors import DwrError

Progress = Callable[[str], None]
"""Told what is going on."""

_WARNING = re.compile(rb"\[[WEF]:onnxruntime")


class ChildError(DwrError):
    """The child left no outcome.

    Attributes:
        late: it was ended because it ran out of time.
    """

    def __init__(self, message: str, late: bool = False) -> None:
        """Says how the child ended, and while doing what."""
        super().__init__(message)
        self.late = late

    @property
    def remedy(self) -> str:
        """What to do about it, to follow a sentence."""
        return "; raise --timeout, or give a smaller --shape" if self.late else ""


def run(command: Sequence[str], job: object, timeout: float, progress: Progress) -> tuple[Any, int]:
    """What a worker makes of a job, and how many warnings onnxruntime wrote meanwhile.

    Args:
        command: what Python runs; the shared folder is added.
        job: for the worker; it is pickled.
        timeout: seconds after which the child is ended.
        progress: told the steps.

    Raises:
        ChildError: the child crashed or ran out of time.
        DwrError: the worker raised it.
    """
    with _folder(job) as folder, closing(_messages(command, folder, timeout)) as steps:
        for step in steps:
            progress(step)
        return _outcome(folder), len(_WARNING.findall((folder / "stderr").read_bytes()))


def stream(command: Sequence[str], job: object, timeout: float) -> Generator[Any]:
    """What a worker makes of a job, piece by piece, each as soon as it is there.

    Closing the generator ends the child at once.

    Args:
        command: what Python runs; the shared folder is added.
        job: for the worker, which answers it with an iterator; it is pickled.
        timeout: seconds that one piece may take before the child is ended.

    Raises:
        ChildError: the child crashed or ran out of time.
        DwrError: the worker raised it.
    """
    with _folder(job) as folder, closing(_messages(command, folder, timeout)) as messages:
        for message in messages:
            if isinstance(message, int):
                yield _load(folder / f"piece{message}")
        _outcome(folder)


@contextmanager
def _folder(job: object) -> Generator[Path]:
    """The shared folder, with the job in it."""
    with tempfile.TemporaryDirectory(prefix="dwr-child-") as name:
        folder = Path(name)
        (folder / "job").write_bytes(pickle.dumps(job))
        yield folder


def _outcome(folder: Path) -> Any:
    """What the child left at its end.

    Raises:
        DwrError: the worker raised it.
    """
    outcome = _load(folder / "outcome")
    if isinstance(outcome, str):
        raise DwrError(outcome)
    return outcome


def _load(path: Path) -> Any:
    return pickle.loads(path.read_bytes())  # noqa: S301  our child wrote it


def _messages(command: Sequence[str], folder: Path, timeout: float) -> Generator[Any]:
    """Runs a worker to its end, and gives what it tells: a step, or the number of a piece.

    The time begins anew after each piece, and stands still while nobody asks for the next one.
    """
    log, stage = folder / "stderr", "starting"
    with log.open("wb") as stderr, subprocess.Popen(  # noqa: S603  our own module
        [sys.executable, *command, str(folder)],
        stdout=subprocess.PIPE, stderr=stderr, stdin=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    ) as child:  # fmt: skip
        limit = _Limit(child, timeout)
        try:
            limit.start()
            assert child.stdout is not None
            for line in child.stdout:
                message = json.loads(line)
                if isinstance(message, str):
                    stage = message
                    yield message
                else:
                    limit.stop()
                    yield message
                    limit.start()
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            limit.stop()
    if limit.expired:
        raise ChildError(f"took longer than {timeout:g} s (while {stage})", late=True)
    if code != 0:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
        why = f" ({last[0]})" if last and code > 0 else ""
        raise ChildError(f"ended with {how} while {stage}{why}")


class _Limit:
    """Ends a child that takes too long."""

    def __init__(self, child: subprocess.Popen[str], seconds: float) -> None:
        self.child, self.seconds, self.expired = child, seconds, False
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        self._timer = threading.Timer(self.seconds, self._expire)
        self._timer.daemon = True  # an interrupt may come before anybody can stop it
        self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        self.child.kill()


def serve(work: Callable[[Any], object]) -> None:
    """Does the job in the folder that the command line names, as the child's whole business.

    Args:
        work: takes the job and gives the outcome, which is no string, or an iterator over its
            pieces; a DwrError of it becomes one in the parent.
    """
    folder = shared()
    job = _load(folder / "job")
    try:
        outcome = work(job)
        if isinstance(outcome, Iterator):
            outcome = _hand_over(cast("Iterator[object]", outcome), folder)
    except DwrError as error:
        outcome = str(error)
    (folder / "outcome").write_bytes(pickle.dumps(outcome))


def shared() -> Path:
    """The folder that this child shares with its parent, who removes it whatever happens."""
    return Path(sys.argv[1])


def _hand_over(pieces: Iterator[object], folder: Path) -> None:
    for number, piece in enumerate(pieces):
        (folder / f"piece{number}").write_bytes(pickle.dumps(piece))
        print(number, flush=True)


def tell(what: str) -> None:
    """Tells the parent what is going on."""
    print(json.dumps(what), flush=True)
