"""The command ``python -m dwr_rewrite.tune``, which torchrun can start on several GPUs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dwr_rewrite.cli.shared import (
    Shapes,
    StoppedError,
    parse_options,
    print_version,
    progress_bar,
    read_settings,
    run,
)
from dwr_rewrite.errors import DwrError

if TYPE_CHECKING:
    from dwr_rewrite.equivalence.plan import Settings
    from dwr_rewrite.passes.onnx.tune.engine import ProviderBench
    from dwr_rewrite.tuning import Bench
    from dwr_rewrite.tuning.tune import Progress

PROGRAM = "dwr_rewrite.tune"
VISIBLE = "CUDA_VISIBLE_DEVICES"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

HELP = (
    "Measure every form of the depthwise convolutions of an ONNX model, and remember the times.\n\n"
    "dwr-rewrite then finds them. On several GPUs, "
    "torchrun --nproc-per-node N -m dwr_rewrite.tune MODEL.onnx shares the work out. What was "
    "measured before is not measured again, and Ctrl-C keeps what has been measured.\n\n"
    "Exit codes: 0 done, or the time is used up; 2 bad usage or input; 130 interrupted."
)


@app.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
def tune(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.")],
    provider: Annotated[
        str | None,
        typer.Option(help="What measures: cuda, tensorrt, openvino, dml, cpu. By default a GPU."),
    ] = None,
    provider_options: Annotated[
        list[str] | None,
        typer.Option("--provider-option", metavar="KEY=VALUE", help="For the provider, as "
                     "onnxruntime takes it: use_tf32=0; repeatable."),
    ] = None,
    shapes: Shapes = None,
    budget: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="For measuring, on each GPU.")
    ] = 600.0,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version(PROGRAM), is_eager=True,
                           help="Show the version.")
    ] = False,
) -> None:  # fmt: skip
    """The command; its help is :data:`HELP`."""
    from dwr_rewrite.passes.onnx import files
    from dwr_rewrite.passes.onnx.rewrite import Options
    from dwr_rewrite.passes.onnx.tune import survey
    from dwr_rewrite.tune import rank, share
    from dwr_rewrite.tuning.database import Database

    _take_one_gpu()
    settings = read_settings(files.read(model).model, [], shapes or [], 0, 600.0, None)
    with Database.open() as database, progress_bar() as progress:
        try:
            asked = provider, parse_options(provider_options or [])
            bench = _bench(model, settings, *asked, progress)
            _check_alone(bench)
            sites = survey(model, Options(policy="auto"), settings, bench.provider)
            questions = sites.questions
            answers = share(questions, bench, database, budget=budget, progress=progress)
        except KeyboardInterrupt:
            raise StoppedError(f"interrupted; {database.path} holds what was measured") from None
    if rank() == 0:
        sys.stdout.write(f"{len(answers)} of {len(questions)} sizes of {model} are measured on "
                         f"{bench.device}; {database.path} holds them\n")  # fmt: skip


def _bench(
    model: Path, settings: Settings, provider: str | None, options: dict[str, str],
    progress: Progress,
) -> ProviderBench:  # fmt: skip
    """What measures, under the free setting that ``dwr-rewrite`` would measure under, too.

    It is found by rank 0 for all, so that chance does not have them measure different things.
    """
    from dwr_rewrite.passes.onnx.tune.engine import Onnxruntime
    from dwr_rewrite.passes.onnx.tune.free import best
    from dwr_rewrite.tune import by_rank_0

    engine = Onnxruntime()
    bench = engine.bench(provider, options)

    def decide() -> str:
        free = engine.free(model, settings, bench.provider, progress)
        return json.dumps(dict(best(free, bench.provider)[1].options))

    found = json.loads(by_rank_0(decide))
    return bench if found == bench.provider.options else engine.bench(bench.provider.name, found)


def _take_one_gpu() -> None:
    """Lets this process and its children see the one GPU that is its own among torchrun's.

    With an option of the provider instead, the GPUs would not count as equal.

    Raises:
        DwrError: there are fewer than processes.
    """
    from dwr_rewrite.tune import local_rank, local_workers

    visible = os.environ.get(VISIBLE)
    gpus = None if visible is None else [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    if local_workers() == 1 or gpus == []:
        return
    if gpus is not None and local_rank() >= len(gpus):
        raise DwrError(f"process {local_rank()} of this host has no GPU of its own: {VISIBLE} "
                       f"names {len(gpus)}; start as many processes as there are GPUs")  # fmt: skip
    os.environ[VISIBLE] = str(local_rank()) if gpus is None else gpus[local_rank()]


def _check_alone(bench: Bench) -> None:
    """Refuses several processes that would measure on one CPU at the same time.

    Raises:
        DwrError: they would.
    """
    from dwr_rewrite.passes.onnx.provider import CPU
    from dwr_rewrite.tune import local_workers

    if local_workers() > 1 and bench.device.engine == CPU:
        raise DwrError(f"{local_workers()} processes would measure on one CPU and disturb each "
                       f"other's times; start one process on each host")  # fmt: skip


def main() -> None:
    """Entry point of ``python -m dwr_rewrite.tune``."""
    run(app, PROGRAM)
