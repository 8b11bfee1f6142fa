"""The command ``dwr-report``. Only what parsing needs is imported before there is work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dwr_rewrite.cli.shared import print_version, run
from dwr_rewrite.errors import DwrError

if TYPE_CHECKING:
    from dwr_rewrite.document.reading import Document

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

HELP = (
    "Make a page or a text for people of a report that dwr-rewrite or dwr-verify wrote as JSON.\n\n"
    "The page is one file that opens without a network. Whatever the verdict in the report is, "
    "showing it succeeds.\n\n"
    "Exit codes: 0 written; 2 bad usage or input; 130 interrupted."
)


def print_schema(wanted: bool) -> None:
    """The callback of ``--schema``."""
    if wanted:
        from dwr_rewrite.document.reading import schema_text

        sys.stdout.write(schema_text())
        raise typer.Exit


@app.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
def report(
    source: Annotated[Path, typer.Argument(metavar="REPORT.json", help="The report.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE.html|.md", help="File to write; its ending "
                     "tells the form: .html, or .md to paste into a pull request."),
    ],
    schema: Annotated[
        bool, typer.Option("--schema", callback=print_schema, is_eager=True,
                           help="Print the JSON Schema of a report.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version("dwr-report"), is_eager=True,
                           help="Show the version.")
    ] = False,
) -> None:  # fmt: skip
    """The command; its help is :data:`HELP`."""
    render = renderer(output)
    from dwr_rewrite.document.reading import read
    from dwr_rewrite.passes.onnx import files

    files.check_target(output)
    files.check_apart(output, [source], "which is the report")
    files.write_text(output, render(read(source)))


def renderer(output: Path) -> Callable[[Document], str]:
    """What makes a file of this name of a report.

    Raises:
        DwrError: the ending tells nothing.
    """
    ending = output.suffix.lower()
    if ending == ".html":
        from dwr_rewrite import html as module
    elif ending == ".md":
        from dwr_rewrite import markdown as module
    else:
        raise DwrError(f"{output}: its name must end in .html or .md, which tells the form")
    return module.render


def main() -> None:
    """Entry point of ``dwr-report``."""
    run(app, "dwr-report")
