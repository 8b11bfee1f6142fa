"""The command ``dwr-rewrite``. Only what parsing needs is imported before there is work."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from dwr_rewrite.cli.shared import (
    StoppedError,
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

_WHAT, _FAST, _CHECK, _OUT = "What to rewrite", "Speed", "Proof", "Output"

HELP = (
    "Rewrite the depthwise convolutions of an ONNX model as diagonal standard convolutions.\n\n"
    "Where there is a GPU, every form is measured on it, and the original is written, byte for "
    "byte, unless the whole model is faster with what was chosen. The result is compared with the "
    "original before anything is written, and a file that exists is replaced only by a whole "
    "one.\n\n"
    "Exit codes: 0 written, or nothing to do; 1 not shown to be equivalent, nothing written; "
    "2 bad usage or input; 130 interrupted."
)


@app.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
def rewrite(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="ONNX file; - reads standard input.")
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="File to write; - for standard output.",
                     rich_help_panel=_OUT),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(help="auto gives every site the form that is fastest; blocks:N (groups of N "
                     "channels), dense (one group) and keep give all of them one.",
                     rich_help_panel=_WHAT),
    ] = "auto",
    weights: Annotated[
        Literal["precomputed", "linked"],
        typer.Option(help="precomputed stores the diagonal weights; linked keeps the compact ones "
                     "and builds the diagonal in the graph, so the file does not grow.",
                     rich_help_panel=_WHAT),
    ] = "precomputed",
    freeze_weights: Annotated[
        bool,
        typer.Option("--freeze-weights", help="Make initializers that are also graph inputs "
                     "constant: callers can no longer override them.", rich_help_panel=_WHAT),
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Only sites whose name matches; repeatable.",
                     rich_help_panel=_WHAT),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="No site whose name matches; repeatable.",
                     rich_help_panel=_WHAT),
    ] = None,
    max_growth: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Weight bytes that may be added (K, M, G); sites past it "
                     "are kept.", rich_help_panel=_WHAT),
    ] = "256M",
    restore: Annotated[
        bool,
        typer.Option("--restore", help="Give a rewritten model its depthwise convolutions back.",
                     rich_help_panel=_WHAT),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, from what is known "
                           "already; measure and write nothing.",
                           rich_help_panel=_OUT)
    ] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME:FILE.npy", help="Real input for the check, or an "
                     ".npz with several; repeatable.", rich_help_panel=_CHECK),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="NAME:1x3x224x224", help="Shape of an input with dynamic "
                     "dimensions; repeatable.", rich_help_panel=_CHECK),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the generated inputs.", rich_help_panel=_CHECK)
    ] = 0,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that the check may take.", rich_help_panel=_CHECK)
    ] = 600.0,
    provider: Annotated[
        str | None,
        typer.Option(help="Measure with it: cuda, tensorrt, openvino, dml, cpu. By default a GPU, "
                     "if there is one. With another policy than auto both models are timed on it, "
                     "and the original is kept unless the rewritten one is faster.",
                     rich_help_panel=_FAST),
    ] = None,
    provider_options: Annotated[
        list[str] | None,
        typer.Option("--provider-option", metavar="KEY=VALUE", help="For the provider, as "
                     "onnxruntime takes it: use_tf32=0; repeatable.", rich_help_panel=_FAST),
    ] = None,
    target_name: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="Device that the model is to be fast on: "
                     "H200, or cpu for this CPU. Where it is not here, what was recorded of it "
                     "decides, or a cost model.", rich_help_panel=_FAST),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="For measuring single convolutions.",
                            rich_help_panel=_FAST)
    ] = 120.0,
    min_speedup: Annotated[
        float, typer.Option(min=0, help="How many times faster the model has to be.",
                            rich_help_panel=_FAST)
    ] = 1.02,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Write without comparing the models.",
                           rich_help_panel=_CHECK)
    ] = False,
    save_external_data: Annotated[
        bool, typer.Option("--save-external-data", help="Keep the tensors in OUTPUT.data (always "
                           "done past 2 GiB).", rich_help_panel=_OUT)
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report: .json, .html or .md.",
                                  rich_help_panel=_OUT)
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=_OUT)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="One line for each convolution.",
                           rich_help_panel=_OUT)
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version("dwr-rewrite"), is_eager=True,
                           help="Show the version.", rich_help_panel=_OUT)
    ] = False,
) -> None:  # fmt: skip
    """The command; its help is :data:`HELP`."""
    if output is None and not dry_run:
        raise DwrError("name the file to write with -o OUTPUT, or look first with --dry-run")
    if output == "-" and json_:
        raise DwrError("--json and -o - both want standard output; use --report FILE.json")
    from dwr_rewrite.passes.onnx import files, serialize
    from dwr_rewrite.passes.onnx.rewrite import Options
    from dwr_rewrite.passes.onnx.run import Run
    from dwr_rewrite.passes.onnx.tune.auto import Interrupted
    from dwr_rewrite.passes.onnx.tune.ground import Target

    options = Options(policy, weights, freeze_weights, include or (), exclude or (),
                      parse_size(max_growth), restore)  # fmt: skip
    faster_on = Target(provider, parse_options(provider_options or []), target_name, min_speedup,
                       budget)  # fmt: skip
    source = files.read_stream(sys.stdin.buffer) if model == "-" else files.read(Path(model))
    target = None if dry_run or output == "-" else Path(output or "")
    if report is not None:
        check_report(report, {
            "which belongs to the input": source.files,
            "which is the output": files.with_data(target),
        })  # fmt: skip
    settings = read_settings(source.model, inputs or [], shapes or [], seed, timeout, report)
    with progress_bar() as progress:
        command = shlex.join(["dwr-rewrite", *sys.argv[1:]])
        configured = Run(
            options, settings, not (no_verify or dry_run), save_external_data, progress, command,
            faster_on, measure=not dry_run,
        )  # fmt: skip
        try:
            result = configured(source, target)
        except NotEquivalentError as error:
            if error.report is not None:
                if report is not None:
                    write_report(report, error.report)
                if json_:
                    sys.stdout.write(error.report.to_json())
            raise
        except Interrupted as stopped:
            raise StoppedError(str(stopped)) from None
    done = result.report
    if output == "-" and not dry_run:
        serialize.write(result.model, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        done = replace(done, output="standard output")
    if report is not None:
        write_report(report, done)
    show_report(done, json_, verbose, to_stderr=output == "-")


def parse_size(text: str) -> int:
    """``256M`` -> bytes; K, M and G are powers of 1024.

    Raises:
        DwrError: not a size.
    """
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise DwrError(f"--max-growth {text!r}: a number of bytes expected, as in 64M or 2G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]


def main() -> None:
    """Entry point of ``dwr-rewrite``."""
    run(app, "dwr-rewrite")
