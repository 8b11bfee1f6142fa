"""The command ``dwr-bench``: what this machine has measured, and what its device can do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dwr_rewrite.cli.shared import print_version, run
from dwr_rewrite.errors import DwrError
from dwr_rewrite.tuning.database import Database

if TYPE_CHECKING:
    from rich.table import Table

    from dwr_rewrite.cost import Target
    from dwr_rewrite.tuning import Device

HELP = (
    "Move tuning results between machines, look at them, and measure what a device can do.\n\n"
    "Exit codes: 0 done; 2 bad usage or input; 130 interrupted."
)

UNITS = {"copy": "byte/s", "launch": "s", "l2_bytes": "byte", "multiprocessors": ""}
"""Of the rates that are not in flop/s."""

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version("dwr-bench"), is_eager=True,
                           help="Show the version.")
    ] = False,
) -> None:  # fmt: skip
    """What belongs to no single command."""


@app.command()
def export(file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")]) -> None:
    """Write all tuning results to a file, for dwr-bench import on another machine."""
    with Database.open() as database:
        database.export(file)


@app.command(name="import")
def import_(file: Annotated[Path, typer.Argument(metavar="FILE", help="Such a file.")]) -> None:
    """Add the results of another machine; of two answers to one question the newer stays."""
    with Database.open() as database:
        count = database.merge(file)
        sys.stdout.write(f"{count} new or newer results are in {database.path}\n")


@app.command()
def show() -> None:
    """Show which devices have answered, and how often."""
    from rich.console import Console

    with Database.open() as database:
        rows = [
            (f"{_shown(h.device.name)}, {_shown(h.device.engine)}\n{_facts(h.device)}",
             _shown(h.version), str(h.answers), h.newest[:10])
            for h in database.holdings()
        ]  # fmt: skip
        calibrated = ", ".join(_shown(device.name) for device in database.calibrated())
        title = f"{database.path}"
    console = Console()
    if rows:
        columns = ("device", "version", "sizes", "newest")
        console.print(_table(title, columns, rows))
    else:
        console.print(f"{title}: nothing was measured yet", markup=False, soft_wrap=True)
    if calibrated:
        console.print(f"calibrated: {calibrated}", markup=False, soft_wrap=True)


@app.command()
def calibrate(
    target: Annotated[
        Literal["gpu", "cpu"] | None,
        typer.Option(help="What to measure; by default a GPU, or else the CPU, which is then not "
                     "the target of anything."),
    ] = None,
) -> None:  # fmt: skip
    """Measure the rates of this device, from which the cost model makes a target; a minute."""
    from rich.console import Console

    device = _here(target)
    from dwr_rewrite.passes.fx.tune.calibrate import rates

    on = "cpu" if device.facts["kind"] == "cpu" else "cuda:0"
    found = rates(on)
    with Database.open() as database:
        database.put_rates(device, found)
    sheet = _data_sheet(device, found)
    rows = [
        (name, UNITS.get(name, "flop/s"), f"{rate:.3g}", sheet.get(name, ""))
        for name, rate in found.items()
    ]
    Console().print(_table(str(device), ("rate", "unit", "measured", "data sheet"), rows))


def _here(target: Literal["gpu", "cpu"] | None) -> Device:
    """The device that is calibrated.

    Raises:
        DwrError: a GPU is asked for, and there is none.
    """
    import torch

    from dwr_rewrite import nvidia
    from dwr_rewrite.report import processor
    from dwr_rewrite.tuning import Device

    gpu = None if target == "cpu" else nvidia.gpu(0)
    if gpu is None and target == "gpu":
        raise DwrError("there is no NVIDIA GPU here; --target cpu measures the CPU")
    facts = {"torch": str(torch.__version__)}
    if gpu is None:
        name = processor()
        facts |= {"kind": "cpu", "threads": str(torch.get_num_threads())}
    else:
        name = gpu.name
        facts |= {"kind": "gpu", "driver": nvidia.driver_version() or gpu.cuda}
    return Device(name, "calibrate", {"device": name, **facts}, target=target == "cpu" or bool(gpu))


def _data_sheet(device: Device, rates: Mapping[str, float]) -> Mapping[str, str]:
    """The same rates as its maker states them, where the device is a known target."""
    from dwr_rewrite.cost import find_target

    try:
        known = find_target(device.name)
    except DwrError:
        return {}
    return {name: f"{rate:.3g}" for name in rates if (rate := _stated(known, name))}


def _stated(known: Target, rate: str) -> float | None:
    units, _, numbers = rate.partition(".")
    if units in ("fma", "matrix"):
        return getattr(known, units).get(numbers)
    field = {"copy": "bandwidth"}.get(rate, rate)
    return getattr(known, field)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _facts(device: Device) -> str:
    told = (f"{fact} {value}" for fact, value in sorted(device.facts.items()))
    return _shown(", ".join(told))


def _shown(text: str) -> str:
    """Without the control characters with which a text could write elsewhere on a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def main() -> None:
    """Entry point of ``dwr-bench``."""
    run(app, "dwr-bench")
