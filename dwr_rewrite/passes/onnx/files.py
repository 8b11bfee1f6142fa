"""Reads and writes model files. Nothing is overwritten before the new file is whole."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, external_data_helper, helper

from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx import serialize

PROTOBUF_LIMIT = (1 << 31) - 1
"""Bytes that one protobuf file may have."""

MARGIN = 1 << 24
"""Kept free below the limit for nodes and names when the size is estimated from tensors."""


@dataclass
class Source:
    """A model that was read.

    Attributes:
        model: with all its tensors in memory.
        name: what to call it in messages.
        path: its file; None when it came through a stream or from memory.
        files: its file and those that its external data lies in.
    """

    model: ModelProto
    name: str
    path: Path | None = None
    files: frozenset[Path] = frozenset()

    def release(self) -> None:
        """Lets go of the model: clearing a protobuf gives no memory back."""
        self.model = ModelProto()

    def size(self) -> int:
        """Bytes of its files, or of its tensors where it has none."""
        if not self.files:
            return tensor_bytes(self.model)
        return sum(file.stat().st_size for file in self.files)


def read(path: Path) -> Source:
    """Loads a model with its external data.

    Raises:
        DwrError: the file is missing, not readable, not an ONNX model, or its external data is.
    """
    try:
        model = parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise DwrError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DwrError(f"{path}: is a directory; give the .onnx file in it") from None
    except OSError as error:
        raise DwrError(f"{path}: cannot be read: {_why(error)}") from None
    locations = {
        entry.value
        for tensor in _tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    try:  # it takes the locations out of the model
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise DwrError(f"{path}: its external data cannot be read: {first_line(error)}") from error
    files = {path, *(path.parent / location for location in locations)}
    return Source(model, str(path), path, frozenset(file.resolve() for file in files))


def read_stream(stream: BinaryIO) -> Source:
    """A model from a stream, which can have no external data.

    Raises:
        DwrError: it is no ONNX model, or keeps tensors in other files.
    """
    model = parse(stream.read(), "standard input")
    if any(external_data_helper.uses_external_data(tensor) for tensor in _tensors(model)):
        raise DwrError("the model on standard input keeps tensors in other files; give its path")
    return Source(model, "standard input")


def parse(content: bytes, source: str) -> ModelProto:
    """A model from the bytes of a file.

    Raises:
        DwrError: the bytes are no ONNX model.
    """
    if not content:
        raise DwrError(f"{source}: is empty; an ONNX model expected")
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError):
        raise DwrError(f"{source}: is not an ONNX model, or it is cut short") from None
    if not model.ir_version or not (model.graph.node or model.graph.input or model.graph.output):
        raise DwrError(f"{source}: is not an ONNX model: it has no graph")
    return model


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    pending: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        yield from getattr(graph, "initializer", ())
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("g"):
                    pending.append(attribute.g)


def tensor_bytes(model: ModelProto) -> int:
    """Bytes of all tensors, from their shapes."""
    return sum(prod(tensor.dims) * _itemsize(tensor) for tensor in _tensors(model))


def count_parameters(model: ModelProto) -> int:
    """Numbers stored in initializers and constants at any depth."""
    return sum(prod(tensor.dims) for tensor in _tensors(model))


def count_nodes(model: ModelProto) -> int:
    """Nodes at any depth, local functions included."""
    pending, count = [model.graph.node, *(f.node for f in model.functions)], 0
    while pending:
        nodes = pending.pop()
        count += len(nodes)
        pending += [a.g.node for node in nodes for a in node.attribute if a.HasField("g")]
    return count


def _itemsize(tensor: TensorProto) -> int:
    """Bytes of one element; 0 for text, and for a type that this onnx does not know."""
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        return 0
    return 0 if tensor.data_type == TensorProto.STRING else dtype.itemsize


def _why(error: OSError) -> str:
    return error.strerror or first_line(error)


class Staged:
    """A model written beside its target, which :meth:`commit` puts in place.

    Attributes:
        path: the staged model; it can be loaded from here.
        target: where it will stand.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        """Stages ``target`` in ``folder``, which lies on the same file system."""
        self.path = folder / target.name
        self.target = target

    def write(self, model: ModelProto, external: bool) -> None:
        """Writes and syncs the model, and its large tensors to ``<name>.data`` if ``external``.

        Raises:
            DwrError: the disk refuses, or the model does not fit into one file.
        """
        data = self.path.with_name(f"{self.target.name}.data")
        try:
            with ExitStack() as stack:
                tensors = stack.enter_context(data.open("wb")) if external else None
                size = serialize.write(model, stack.enter_context(self.path.open("wb")), tensors)
            for file in self.path.parent.iterdir():
                _sync(file)
        except OSError as error:
            raise DwrError(f"{self.target}: cannot be written: {_why(error)}") from None
        if size > PROTOBUF_LIMIT:
            raise DwrError(f"{self.target}: would have {size} bytes, more than the 2 GiB of one "
                           f"file; use --save-external-data")  # fmt: skip

    def copy(self, source: Path) -> None:
        """Stages the bytes of another file.

        Raises:
            DwrError: the disk refuses.
        """
        try:
            shutil.copyfile(source, self.path)
            _sync(self.path)
        except OSError as error:
            raise DwrError(f"{self.target}: cannot be written: {_why(error)}") from None

    def size(self) -> int:
        """Bytes of the staged files."""
        return sum(file.stat().st_size for file in self.path.parent.iterdir())

    def commit(self) -> None:
        """Renames the staged files into place, the model last.

        Raises:
            DwrError: the disk refuses; the target is as it was.
        """
        try:
            data = self.path.with_name(f"{self.target.name}.data")
            if data.exists():
                data.replace(self.target.with_name(data.name))
            self.path.replace(self.target)
            if os.name == "posix":  # elsewhere a folder cannot be opened
                _sync(self.target.parent)
        except OSError as error:
            raise DwrError(f"{self.target}: cannot be written: {_why(error)}") from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file as :class:`Staged` writes a model.

    Raises:
        DwrError: the disk refuses.
    """
    with staging(path) as staged:
        try:
            staged.path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DwrError(f"{path}: cannot be written: {_why(error)}") from None
        staged.commit()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_target(target: Path) -> None:
    """Refuses a path that no file can be written to.

    Raises:
        DwrError: says why.
    """
    folder = target.resolve().parent
    if target.is_dir():
        raise DwrError(f"{target}: is a directory; name the file to write")
    if target.exists() and not target.is_file():
        raise DwrError(f"{target}: is not a regular file; use - for standard output")
    if not folder.is_dir():
        raise DwrError(f"{target}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise DwrError(f"{target}: cannot be written: permission denied")


def with_data(path: Path | None) -> tuple[Path, ...]:
    """The files that writing a model to ``path`` may write; none for None."""
    return () if path is None else (path, path.with_name(f"{path.name}.data"))


def check_apart(written: Path, others: Iterable[Path], whose: str) -> None:
    """Refuses to write a file that is another one, whatever links lead to it.

    Raises:
        DwrError: names the file that would be lost.
    """
    for other in others:
        same = written.exists() and other.exists() and written.samefile(other)
        if same or written.resolve() == other.resolve():
            raise DwrError(f"{written}: would overwrite {other}, {whose}; name another file")


@contextmanager
def staging(target: Path) -> Generator[Staged]:
    """A place beside ``target`` for its next content; gone afterwards, committed or not.

    Raises:
        DwrError: there can be no file at ``target``.
    """
    check_target(target)
    target = target.resolve()
    folder = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    try:  # from before there is a folder, so that an interrupt leaves none
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise DwrError(f"{target}: cannot be written: {_why(error)}") from None
        yield Staged(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
