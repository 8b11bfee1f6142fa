"""Work in a child process, so that a crash or a hang there becomes a sentence.

The parent calls :func:`run` with the command of a worker, which calls :func:`serve`. They share a
folder: the job goes in, the outcome comes back, and standard error is kept there. On its standard
output the child writes one JSON line for each step.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    with tempfile.TemporaryDirectory(prefix="dwr-child-") as name:
        folder = Path(name)
        (folder / "job").write_bytes(pickle.dumps(job))
        warnings = _wait([sys.executable, *command, name], folder / "stderr", timeout, progress)
        outcome = pickle.loads((folder / "outcome").read_bytes())  # noqa: S301  our child's
    if isinstance(outcome, str):
        raise DwrError(outcome)
    return outcome, warnings


def _wait(command: Sequence[str], log: Path, timeout: float, progress: Progress) -> int:
    """Runs a command to its end; returns how many warnings onnxruntime wrote."""
    stage = "starting"
    expired = threading.Event()
    with log.open("wb") as stderr, subprocess.Popen(  # noqa: S603  our own module
        command, stdout=subprocess.PIPE, stderr=stderr, stdin=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    ) as child:  # fmt: skip

        def expire() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(timeout, expire)
        timer.daemon = True  # an interrupt may come before the try below
        try:
            timer.start()
            assert child.stdout is not None
            for line in child.stdout:
                stage = json.loads(line)
                progress(stage)
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            timer.cancel()
    if expired.is_set():
        raise ChildError(f"took longer than {timeout:g} s (while {stage})", late=True)
    content = log.read_bytes()
    if code != 0:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = content.decode(errors="replace").strip().splitlines()[-1:]
        why = f" ({last[0]})" if last and code > 0 else ""
        raise ChildError(f"ended with {how} while {stage}{why}")
    return len(_WARNING.findall(content))


def serve(work: Callable[[Any], object]) -> None:
    """Does the job in the folder that the command line names, as the child's whole business.

    Args:
        work: takes the job and gives the outcome, which is no string; a DwrError of it becomes one
            in the parent.
    """
    folder = Path(sys.argv[1])
    job = pickle.loads((folder / "job").read_bytes())  # noqa: S301  the parent wrote it
    try:
        outcome = work(job)
    except DwrError as error:
        outcome = str(error)
    (folder / "outcome").write_bytes(pickle.dumps(outcome))


def tell(what: str) -> None:
    """Tells the parent what is going on."""
    print(json.dumps(what), flush=True)
