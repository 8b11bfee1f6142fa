"""What the commands share: the progress bar, and that every failure is one line and a code."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import typer.exceptions
import typer.main

from dwr_rewrite import __version__
from dwr_rewrite.errors import DwrError

if TYPE_CHECKING:
    from onnx import ModelProto

    from dwr_rewrite.equivalence.plan import Settings
    from dwr_rewrite.report import Report
    from dwr_rewrite.tuning.tune import Progress

Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME:1x3x224x224", help="Shape of an input with dynamic "
                 "dimensions; repeatable."),
]  # fmt: skip
"""The option ``--shape``, whose texts :func:`read_settings` reads."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""


class StoppedError(DwrError):
    """Ctrl-C, with something to say about what was done until then."""

    exit_code = INTERRUPTED


@contextmanager
def progress_bar() -> Generator[Progress]:
    """A bar on standard error once the work has taken a second; none where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done=0, total=0: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("reading", total=None)
    timer = threading.Timer(1.0, bar.start)
    timer.daemon = True
    try:
        timer.start()

        def show(what: str, done: int = 0, total: int = 0) -> None:
            of = f" ({done} of {total})" if total else ""
            if not total:  # it is not counted: the bar only moves
                bar.reset(task)
            bar.update(task, description=f"{what}{of}", completed=done, total=total or None)

        yield show
    finally:
        timer.cancel()
        bar.stop()


def run(app: typer.Typer, program: str) -> None:
    """Runs a command; every failure is one line on standard error and an exit code."""
    try:
        code = typer.main.get_command(app).main(prog_name=program, standalone_mode=False)
    except typer.exceptions.TyperException as error:
        _fail(program, f"{error.format_message()} (see {program} --help)", DwrError.exit_code)
    except DwrError as error:
        _fail(program, str(error), error.exit_code)
    except MemoryError:
        _fail(program, "out of memory", DwrError.exit_code)
    if code == INTERRUPTED:  # how typer reports Ctrl-C
        _fail(program, "interrupted; nothing was written", INTERRUPTED)
    sys.exit(code or 0)


def _fail(program: str, message: str, code: int) -> NoReturn:
    sys.stderr.write(f"{program}: error: {message}\n")
    sys.exit(code)


def print_version(program: str) -> Callable[[bool], None]:
    """The callback of ``--version``."""

    def show(wanted: bool) -> None:
        if wanted:
            sys.stdout.write(f"{program} {__version__}\n")
            raise typer.Exit

    return show


def read_settings(
    model: ModelProto,
    inputs: Sequence[str],
    shapes: Sequence[str],
    seed: int,
    timeout: float,
    report: Path | None,
) -> Settings:
    """What a check runs on, from the texts of ``--input`` and ``--shape``.

    The smallest model that still fails goes beside the report, if there is one.

    Raises:
        DwrError: a text that cannot be read, or an input that the model has not.
    """
    from dwr_rewrite.equivalence.plan import Settings
    from dwr_rewrite.passes.onnx.check import parse_inputs, parse_shapes

    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in stored]
    return Settings(
        shapes=parse_shapes(shapes, names), given=parse_inputs(inputs, names), seed=seed,
        timeout=timeout, minimal=report and report.with_suffix(".minimal.onnx"),
    )  # fmt: skip


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Reads ``KEY=VALUE`` items of ``--provider-option``.

    Raises:
        DwrError: one of them is none, or names a key again.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals or key in found:
            raise DwrError(f"--provider-option {text!r}: KEY=VALUE expected, each key once, as in "
                           f"use_tf32=0")  # fmt: skip
        found[key] = value
    return found


def check_report(path: Path, models: Mapping[str, Iterable[Path]]) -> None:
    """Refuses a report that could not be written, or would take a model's place.

    Args:
        path: where it is to go.
        models: files that must stay, by what they are: ``the output``.

    Raises:
        DwrError: it could not, or would.
    """
    from dwr_rewrite.passes.onnx import files

    files.check_target(path)
    for whose, paths in models.items():
        files.check_apart(path, paths, whose)
    if path.suffix.lower() not in (".json", ".html", ".md"):
        raise DwrError(f"--report {path}: a name that ends in .json, .html or .md expected")


def write_report(path: Path, report: Report) -> None:
    """Writes a report in the format that its file name asks for."""
    from dwr_rewrite.passes.onnx.files import write_text

    if path.suffix.lower() == ".html":
        from dwr_rewrite.html import render

        write_text(path, render(report.to_dict()))
    elif path.suffix.lower() == ".md":
        from dwr_rewrite.markdown import render

        write_text(path, render(report.to_dict()))
    else:
        write_text(path, report.to_json())


def show_report(report: Report, as_json: bool, verbose: bool, to_stderr: bool = False) -> None:
    """Prints a report: for a person, or as JSON."""
    if as_json:
        sys.stdout.write(report.to_json())
        return
    from rich.console import Console

    from dwr_rewrite.console import show

    show(report, Console(stderr=to_stderr), verbose)
