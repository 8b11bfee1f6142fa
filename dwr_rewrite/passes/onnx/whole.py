"""A whole model: read, put on disk, counted."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from dwr_rewrite.passes.onnx import files
from dwr_rewrite.passes.onnx.files import Staged, staging
from dwr_rewrite.report import Totals


def read(model: str | os.PathLike[str] | ModelProto) -> files.Source:
    """A file, or a copy of a model in memory.

    Raises:
        DwrError: the file cannot be read.
    """
    if not isinstance(model, ModelProto):
        return files.read(Path(model))
    source = files.Source(ModelProto(), "a model in memory")
    source.model.CopyFrom(model)
    return source


def stage(target: Path, model: ModelProto, stack: ExitStack, external: bool) -> Staged:
    """Writes a model beside its target; the target is untouched until it is committed.

    Args:
        target: where it is to go.
        model: what to write.
        stack: takes the file away again unless it was committed.
        external: keep the tensors in a second file, as is done in any case past 2 GiB.
    """
    staged = stack.enter_context(staging(target))
    large = files.tensor_bytes(model) > files.PROTOBUF_LIMIT - files.MARGIN
    staged.write(model, external or large)
    return staged


def path_of(source: files.Source, target: Path, stack: ExitStack) -> Path:
    """The file of a model; a temporary one where it has none."""
    return source.path or stage(target, source.model, stack, external=False).path


def totals(model: ModelProto, size: int, path: Path | None = None) -> Totals:
    """Figures of a model that takes ``size`` bytes, in a file if there is one."""
    digest = ""
    if path is not None:
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    return Totals(files.count_nodes(model), files.count_parameters(model), size, digest)


def versions() -> dict[str, str]:
    """Of the libraries that run a model."""
    import onnxruntime

    return {
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "numpy": np.__version__,
    }
