"""The calls from Python; the command line makes the same :class:`Run`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto

from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.passes.onnx.rewrite import Options
from dwr_rewrite.passes.onnx.run import Rewrite, Run
from dwr_rewrite.passes.onnx.tune.ground import Target
from dwr_rewrite.passes.onnx.whole import read
from dwr_rewrite.planner import AUTO


def onnx_rewrite(
    model: str | os.PathLike[str] | ModelProto,
    output: str | os.PathLike[str] | None = None,
    *,
    policy: str = AUTO,
    weights: Literal["precomputed", "linked"] = "precomputed",
    freeze_weights: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_growth: int = 256 << 20,
    restore: bool = False,
    verify: bool = True,
    inputs: Mapping[str, ArrayLike] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    timeout: float = 600.0,
    target: str | None = None,
    provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
    min_speedup: float = 1.02,
    budget: float = 120.0,
    save_external_data: bool = False,
) -> Rewrite:
    """Rewrites the depthwise convolutions of an ONNX model as diagonal standard convolutions.

    Args:
        model: a file, or a model in memory, which is not changed.
        output: the file to write; None to write none.
        policy: ``auto`` gives every site the form that is fastest on the target, and keeps the
            original, byte for byte, unless the whole model is faster beyond doubt; ``blocks:N``
            (groups of N channels), ``dense`` (one group) or ``keep`` give all of them one.
        weights: ``precomputed`` stores the diagonal weights; ``linked`` keeps the compact ones and
            builds the diagonal in the graph, so that the file does not grow.
        freeze_weights: make initializers that are also graph inputs constant.
        include: only sites whose name one of these regular expressions finds.
        exclude: no site whose name one of these regular expressions finds.
        max_growth: weight bytes that may be added; sites past it are kept.
        restore: give an already rewritten model its depthwise convolutions back.
        verify: run both models and compare them before anything is written.
        inputs: real inputs for the check, by name; seeded ones are run in any case.
        shapes: shapes for inputs with dynamic dimensions.
        seed: of the seeded inputs.
        timeout: seconds that the check may take, and each timing of the whole model.
        target: the device that the model is to be fast on: ``H200``, or ``cpu`` for this CPU. Where
            it is not here, what was recorded of it decides, or else a cost model. None for the GPU
            that is here; without one the original is kept.
        provider: of onnxruntime, to measure with here: ``cuda``, ``tensorrt``, ``openvino``,
            ``dml``, ``cpu``. With a policy other than ``auto`` both models are timed on it, and the
            original is kept unless the rewritten one is faster.
        provider_options: for it, as onnxruntime takes them.
        min_speedup: how many times faster the model has to be.
        budget: seconds in which ``auto`` may measure single convolutions.
        save_external_data: keep the tensors of ``output`` in ``<output>.data``.

    Returns:
        The rewritten model and the report.

    Raises:
        NotEquivalentError: the check failed or could not be made; nothing was written.
        DwrError: bad usage or bad input; nothing was written.
        Interrupted: by Ctrl-C while ``auto`` measured; nothing was written, and the database keeps
            what was measured.
    """
    options = Options(policy, weights, freeze_weights, include, exclude, max_growth, restore)
    given = {"given": {k: np.asarray(v) for k, v in inputs.items()}} if inputs else {}
    wanted = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    settings = Settings(shapes=wanted, given=given, seed=seed, timeout=timeout)
    run = Run(
        options, settings, verify, save_external_data,
        target=Target(provider, provider_options or {}, target, min_speedup, budget),
    )  # fmt: skip
    return run(read(model), None if output is None else Path(output))


def restore(
    model: str | os.PathLike[str] | ModelProto,
    output: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
) -> Rewrite:
    """Gives a rewritten model its depthwise convolutions back.

    Args:
        model: a file, or a model in memory, which is not changed.
        output: the file to write; None to write none.
        verify: run both models and compare them before anything is written.

    Raises:
        NotEquivalentError: the check failed or could not be made; nothing was written.
        DwrError: bad input; nothing was written.
    """
    return onnx_rewrite(model, output, restore=True, verify=verify)
