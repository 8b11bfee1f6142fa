"""Serializes a model piece by piece, so that its tensors are never all copied at once.

``SerializeToString`` holds a second and for a moment a third copy of every weight. Here the fields
around the large ones are serialized as usual, and each large tensor's bytes are passed on alone;
the result is the same file, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from onnx import GraphProto, ModelProto, TensorProto

LARGE = 1024
"""Bytes of raw data from which a tensor is passed on alone, or put into the data file."""

ALIGNMENT = 4096
"""Offsets in a data file are multiples of it, so that they can be mapped into memory."""

_Proto = TypeVar("_Proto", ModelProto, GraphProto, TensorProto)
_LENGTH_DELIMITED = 2
Piece = bytes | TensorProto
"""Bytes as they stand in the file, or a tensor whose raw data stands there."""


def write(model: ModelProto, file: BinaryIO, data: BinaryIO | None = None) -> int:
    """Writes a model to an open file.

    Args:
        model: it is not changed.
        file: where to.
        data: takes the raw data of large initializers of the main graph, if given.

    Returns:
        The bytes written to ``file``.
    """
    pieces = list(_model(model, data))
    file.writelines(piece if isinstance(piece, bytes) else piece.raw_data for piece in pieces)
    return sum(map(_size, pieces))


def _model(model: ModelProto, data: BinaryIO | None) -> Iterator[Piece]:
    before, after = _around(model, "graph")
    graph = list(_graph(model.graph, data))
    yield before
    yield _header("graph", model, sum(map(_size, graph)))
    yield from graph
    yield after


def _graph(graph: GraphProto, data: BinaryIO | None) -> Iterator[Piece]:
    before, after = _around(graph, "initializer")
    yield before
    for tensor in graph.initializer:
        pieces = list(_tensor(tensor, data))
        yield _header("initializer", graph, sum(map(_size, pieces)))
        yield from pieces
    yield after


def _tensor(tensor: TensorProto, data: BinaryIO | None) -> Iterator[Piece]:
    size = len(tensor.raw_data)
    if size < LARGE:
        yield tensor.SerializeToString()
        return
    before, after = _around(tensor, "raw_data")
    if data is not None:
        stub = TensorProto.FromString(before + after)
        yield _moved(stub, tensor, size, data).SerializeToString()
        return
    yield before
    yield _header("raw_data", tensor, size)
    yield tensor
    yield after


def _moved(stub: TensorProto, tensor: TensorProto, size: int, data: BinaryIO) -> TensorProto:
    """Puts a tensor's raw data into the data file; the stub then says where it is."""
    offset = -(-data.tell() // ALIGNMENT) * ALIGNMENT
    data.write(bytes(offset - data.tell()))
    data.write(tensor.raw_data)
    stub.data_location = TensorProto.EXTERNAL
    entries = {"location": Path(data.name).name, "offset": offset, "length": size}
    for key, value in entries.items():
        stub.external_data.add(key=key, value=str(value))
    return stub


def _around(message: _Proto, name: str) -> tuple[bytes, bytes]:
    """The serialized fields before and after one field, in the order of their numbers."""
    number = message.DESCRIPTOR.fields_by_name[name].number
    halves = type(message)(), type(message)()
    for field, value in message.ListFields():
        if field.name == name:
            continue
        half = halves[field.number > number]
        if field.message_type is None and not isinstance(value, str | bytes | int | float):
            getattr(half, field.name).extend(value)
        elif field.message_type is None:
            setattr(half, field.name, value)
        else:
            getattr(half, field.name).MergeFrom(value)
    return halves[0].SerializeToString(), halves[1].SerializeToString()


def _header(name: str, message: ModelProto | GraphProto | TensorProto, size: int) -> bytes:
    """The tag and length that stand before a length-delimited field (protobuf wire format)."""
    number = message.DESCRIPTOR.fields_by_name[name].number
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(size)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _size(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else len(piece.raw_data)
