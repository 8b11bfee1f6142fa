"""Export a network of the table to ONNX, silently.

`python -m models.export NAME PATH [--exporter torchscript] [--no-fold]` writes one file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Literal, get_args

import torch

from models.entry import Entry, Network

Exporter = Literal["dynamo", "torchscript"]
EXPORTERS: tuple[Exporter, ...] = get_args(Exporter)
OPSETS: dict[Exporter, int] = {"dynamo": 20, "torchscript": 17}


def export(
    entry: Entry,
    path: str | os.PathLike[str],
    exporter: Exporter = "dynamo",
    *,
    seed: int = 0,
    opset: int | None = None,
    fold: bool = True,
    network: Network | None = None,
) -> Path:
    """Write `entry` (or `network`, built from it already) to `path`, weights inside; return it.

    With `fold` the exporter folds BatchNorm into convolutions and simplifies the graph; without,
    each BatchNorm stays a node.

    The batch axis of every input and output is the symbol "batch". Both exporters support every
    network of `models.zoo.EXPORTED`; of the others, not all.
    """
    network = network or entry.build(seed)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    write = _dynamo if exporter == "dynamo" else _torchscript
    try:
        with _silence():
            write(network, partial, opset or OPSETS[exporter], fold)
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _dynamo(network: Network, path: Path, opset: int, fold: bool) -> None:
    # A batch of 1 would be specialised: export needs two to see a symbol.
    inputs = tuple(torch.cat([x, x]) for x in network.inputs)
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        network.module,
        inputs,
        path,
        dynamo=True,
        opset_version=opset,
        external_data=False,
        optimize=fold,
        input_names=network.input_names,
        output_names=network.output_names,
        dynamic_shapes=tuple({0: batch} for _ in inputs),
    )


def _torchscript(network: Network, path: Path, opset: int, fold: bool) -> None:
    names = (*network.input_names, *network.output_names)
    torch.onnx.export(
        network.module,
        network.inputs,
        path,
        dynamo=False,
        opset_version=opset,
        # PRESERVE keeps the eval mode of the module, and the exporter's BatchNorm folding off
        training=torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=fold,
        input_names=network.input_names,
        output_names=network.output_names,
        dynamic_axes={name: {0: "batch"} for name in names},
    )


@contextlib.contextmanager
def _silence() -> Generator[None, None, None]:
    """Hide what the exporters print, log and warn about; exceptions pass."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def main() -> None:
    from models.zoo import ZOO

    parser = argparse.ArgumentParser(prog="python -m models.export")
    parser.add_argument("name", choices=sorted(ZOO))
    parser.add_argument("path", type=Path)
    parser.add_argument("--exporter", choices=EXPORTERS, default="dynamo")
    parser.add_argument("--no-fold", dest="fold", action="store_false", help="keep BatchNorm nodes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.path.parent.mkdir(parents=True, exist_ok=True)
    entry = ZOO[options.name]
    print(export(entry, options.path, options.exporter, seed=options.seed, fold=options.fold))


if __name__ == "__main__":
    main()
