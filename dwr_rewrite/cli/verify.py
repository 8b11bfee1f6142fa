"""The command ``dwr-verify``: are two ONNX files the same function?"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dwr_rewrite.cli.shared import (
    Shapes,
    check_report,
    parse_options,
    print_version,
    progress_bar,
    read_settings,
    run,
    show_report,
    write_report,
)
from dwr_rewrite.errors import DwrError, NotEquivalentError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

HELP = (
    "Show whether two ONNX models compute the same function.\n\n"
    "Both are run on the same inputs and compared with a float64 evaluation of the reference. "
    "Where the candidate was made by dwr-rewrite, its convolutions are proved besides.\n\n"
    "Exit codes: 0 equivalent; 1 not equivalent; 2 could not be checked; 130 interrupted."
)


@app.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
def verify(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="The original ONNX file.")],
    candidate: Annotated[
        Path, typer.Argument(metavar="CANDIDATE", help="The file in question, from any tool.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME:FILE.npy", help="Real input: an .npy, an .npz with "
                     "several, or a folder of them; repeatable."),
    ] = None,
    shapes: Shapes = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated inputs.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that it may take.")] = 600.0,
    time: Annotated[
        bool, typer.Option("--time", help="If they are equivalent, also time both, interleaved.")
    ] = False,
    provider: Annotated[
        str | None,
        typer.Option(help="What --time runs them on: cuda, tensorrt, openvino, dml, cpu. By "
                     "default a GPU, if there is one."),
    ] = None,
    provider_options: Annotated[
        list[str] | None,
        typer.Option("--provider-option", metavar="KEY=VALUE", help="For --provider, as "
                     "onnxruntime takes it: use_tf32=0; repeatable."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report: .json, .html or .md. If "
                                  "the check fails, the smallest model that still fails is "
                                  "written beside it.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="One line for each convolution.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version("dwr-verify"), is_eager=True,
                           help="Show the version.")
    ] = False,
) -> None:  # fmt: skip
    """The command; its help is :data:`HELP`."""
    from dwr_rewrite.passes.onnx import files
    from dwr_rewrite.passes.onnx import verify as comparing

    sources = files.read(reference), files.read(candidate)
    if report is not None:
        belongs = ("which belongs to the reference", "which belongs to the candidate")
        owners = zip(belongs, (source.files for source in sources), strict=True)
        check_report(report, dict(owners))
    settings = read_settings(sources[0].model, inputs or [], shapes or [], seed, timeout, report)
    if (provider is not None or provider_options) and not time:
        raise DwrError("--provider says what --time runs on; add --time")
    for_provider = parse_options(provider_options or [])
    with progress_bar() as progress:
        found = comparing.verify(
            *sources, settings, progress=progress,
            command=shlex.join(["dwr-verify", *sys.argv[1:]]),
        )  # fmt: skip
        if time and found.verdict == "equivalent":
            from dwr_rewrite.passes.onnx.runtime import time_models

            timed = time_models(
                reference, candidate, settings, provider=provider,
                provider_options=for_provider, progress=progress,
            )  # fmt: skip
            found = replace(found, runtime=timed.runtime)
    if report is not None:
        write_report(report, found)
    show_report(found, json_, verbose)
    assert found.verification is not None
    if found.verdict == "not equivalent":
        raise NotEquivalentError(comparing.failure(found.verification), found)
    if found.verdict == "not checked":
        raise DwrError(comparing.failure(found.verification))


def main() -> None:
    """Entry point of ``dwr-verify``."""
    run(app, "dwr-verify")
