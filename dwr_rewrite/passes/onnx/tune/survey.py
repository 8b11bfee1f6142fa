"""What there is to measure in a model: the size of every site."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from onnx import ModelProto

from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.equivalence.samples import Inputs, Shapes
from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.passes.onnx import child
from dwr_rewrite.passes.onnx.device import JOBS, look
from dwr_rewrite.passes.onnx.graphs import quiet
from dwr_rewrite.passes.onnx.match import Match
from dwr_rewrite.passes.onnx.provider import Provider
from dwr_rewrite.passes.onnx.rewrite import Options, find
from dwr_rewrite.passes.onnx.types import declared, infer
from dwr_rewrite.passes.onnx.weights import Types
from dwr_rewrite.passes.onnx.whole import path_of, read
from dwr_rewrite.planner.auto import Sites
from dwr_rewrite.workload import Workload


def survey(
    model: str | os.PathLike[str] | ModelProto,
    options: Options,
    settings: Settings,
    provider: Provider | None = None,
) -> Sites:
    """The convolutions of a model at the size that it is timed with.

    Args:
        model: a file, or a model in memory, which is not changed.
        options: which sites, and what their weights may take.
        settings: inputs, shapes and seed.
        provider: what will run it; by default the best that loads here.

    Raises:
        DwrError: the model cannot be read, or the shapes do not fit it.
    """
    source = read(model)
    used = look(None, {}).provider if provider is None else provider
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dwr-")))
        path = path_of(source, scratch / "model.onnx", stack)
        shapes = first_shapes(source.model, path, settings, used)
    return sites_at(source.model, options, shapes, used)


def first_shapes(model: ModelProto, path: Path, settings: Settings, provider: Provider) -> Shapes:
    """The shapes that the model is timed with: the first on which it runs.

    Args:
        model: what is in the file.
        path: the file; it is run where there is more than one shape to try.
        settings: inputs, shapes and seed.
        provider: what runs it.

    Raises:
        DwrError: the given shapes or inputs do not fit, or it runs on none.
    """
    given = dict(list(settings.given.items())[:1])
    possible = list(Inputs(dict(declared(model)), settings.shapes, given).shapes(*given))
    if len(possible) == 1:
        return possible[0]
    found: Shapes
    try:
        job = First(path.resolve(), settings, provider)
        found, _ = child.run(JOBS, job, settings.timeout, lambda what: None)
    except child.ChildError as error:
        raise DwrError(f"the process that tried the model's sizes {error}{error.remedy}") from None
    return found


@dataclass(frozen=True)
class First:
    """A job: the shapes of the first inputs on which a model runs."""

    path: Path
    settings: Settings
    provider: Provider

    def __call__(self) -> Shapes:
        """The shapes.

        Raises:
            DwrError: there are none.
        """
        from dwr_rewrite.passes.onnx.loading import Loader

        _, feeds = Loader(self.provider, self.settings).first(self.path)
        return {name: array.shape for name, array in feeds.items()}


def sites_at(model: ModelProto, options: Options, shapes: Shapes, provider: Provider) -> Sites:
    """The convolutions of a model whose inputs have these shapes.

    Args:
        model: a model, which is not changed.
        options: which sites, and what their weights may take.
        shapes: of its inputs.
        provider: what will run it.

    Raises:
        DwrError: an option is wrong, or the model cannot be read.
    """
    types = cache(lambda: infer(model, shapes))
    with quiet():
        _, found = find(model, options)
        results = [
            (result.site.name, _workload(result, types(), provider))
            for result in found
            if isinstance(result, Match)
        ]
    return Sites(
        {name: (result,) for name, result in results if isinstance(result, Workload)},
        {name: result for name, result in results if isinstance(result, Rejection)},
        options.max_growth,
    )


def _workload(match: Match, types: Types, provider: Provider) -> Workload | Rejection:
    """A site as it runs. A linked weight is folded when the model is loaded, hence stored."""
    spec, x = match.site.spec, match.node.inputs[0].name
    _, shape = types.get(x, ("", ()))
    batch, *spatial = shape[:1] + shape[2:] or (None,)
    known = tuple(length for length in spatial if length is not None)
    if batch is None or len(known) != len(spec.kernel):
        return Rejection("unknown-size", f"the size of its input {x!r} is not known before it runs")
    try:
        return Workload(
            spec.at(known), batch, layout=provider.layout,
            tf32=provider.tf32 and spec.dtype == "float32",
        )  # fmt: skip
    except ValueError as error:
        return Rejection("unknown-size", str(error))
