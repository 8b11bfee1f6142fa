"""Model files: the same bytes as protobuf writes, external data, and what may never be lost."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx import files, onnx_rewrite, serialize
from models.handmade import chain, conv_model, x3d_block
from tests.passes.onnx.test_rewrite import decorated
from tests.passes.onnx.test_weights import SOURCES

MODELS = {
    "small": conv_model(channels=2, kernel=[2], spatial=[5]),
    "large": conv_model(channels=512),
    "typed fields": SOURCES["constant-of-shape"],
    "bfloat16": conv_model(channels=256, dtype="bfloat16", opset=22, ir_version=10),
    "chain": chain(30),
    "x3d": x3d_block(expansion=128),
    "decorated": decorated(),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_pieces_make_the_same_file(name):
    model, stream = MODELS[name], io.BytesIO()
    before = model.SerializeToString(deterministic=True)
    size = serialize.write(model, stream)
    assert stream.getvalue() == model.SerializeToString()
    assert size == len(stream.getvalue())
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 1 << 20, (1 << 31) - 1])
def test_varints_are_protobufs(value):
    """An int64 field of a message of nothing else is its tag and the varint."""
    proto = onnx.AttributeProto(i=value)
    assert serialize._varint(value) == proto.SerializeToString()[1:]


@pytest.mark.parametrize("name", MODELS)
def test_external_data_is_read_back(name, tmp_path):
    model = MODELS[name]
    with files.staging(tmp_path / "m.onnx") as staged:
        staged.write(model, external=True)
        staged.commit()
    stored = onnx.load(tmp_path / "m.onnx")
    large = [t.name for t in model.graph.initializer if len(t.raw_data) >= serialize.LARGE]
    raw = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert [t.name for t in raw.graph.initializer if t.external_data] == large
    for entry in (e for t in raw.graph.initializer for e in t.external_data if e.key == "offset"):
        assert int(entry.value) % serialize.ALIGNMENT == 0
    for one, other in zip(stored.graph.initializer, model.graph.initializer, strict=True):
        assert numpy_helper.to_array(one).tobytes() == numpy_helper.to_array(other).tobytes()


def external_model(folder, location):
    model = chain(20, channels=16)
    onnx.save(
        model, folder / "a.onnx", save_as_external_data=True, location=location, size_threshold=0
    )
    return folder / "a.onnx"


def test_the_inputs_own_data_file_is_never_overwritten(tmp_path):
    path = external_model(tmp_path, "b.onnx.data")
    before = (tmp_path / "b.onnx.data").read_bytes()
    with pytest.raises(DwrError, match=r"would overwrite .*b\.onnx\.data, which belongs to the"):
        onnx_rewrite(
            path, tmp_path / "b.onnx", policy="blocks:32", verify=False, save_external_data=True
        )
    (tmp_path / "c.onnx").symlink_to(tmp_path / "b.onnx.data")
    with pytest.raises(DwrError, match="which belongs to the input"):
        onnx_rewrite(path, tmp_path / "c.onnx", policy="blocks:32", verify=False)
    assert (tmp_path / "b.onnx.data").read_bytes() == before


def test_the_size_before_counts_the_data_file(tmp_path):
    path = external_model(tmp_path, "weights.bin")
    report = onnx_rewrite(path, policy="blocks:32", verify=False).report
    assert report.before.bytes == sum(f.stat().st_size for f in tmp_path.iterdir())


def test_a_second_run_replaces_its_own_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(chain(20, channels=16), "a.onnx")
    for policy in ("blocks:4", "dense"):
        onnx_rewrite("a.onnx", "fast.onnx", policy=policy, verify=False, save_external_data=True)
    assert {p.name for p in tmp_path.iterdir()} == {"a.onnx", "fast.onnx", "fast.onnx.data"}
    shapes = {tuple(t.dims) for t in onnx.load("fast.onnx").graph.initializer}
    assert shapes == {(16, 16, 3, 3)}


def test_a_full_disk_leaves_the_target_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "fast.onnx").write_bytes(b"precious")

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serialize, "write", full)
    with pytest.raises(DwrError, match="No space left on device"):
        onnx_rewrite(chain(20), tmp_path / "fast.onnx", policy="blocks:32", verify=False)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"fast.onnx": b"precious"}


def test_what_does_not_fit_into_one_file_is_refused_or_moved_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PROTOBUF_LIMIT", 4096)
    with pytest.raises(DwrError, match="more than the 2 GiB of one file"):
        onnx_rewrite(chain(2000), tmp_path / "nodes.onnx", policy="blocks:32", verify=False)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(files, "PROTOBUF_LIMIT", files.MARGIN + 4096)
    onnx_rewrite(chain(20, channels=16), tmp_path / "m.onnx", verify=False, policy="dense")
    assert (tmp_path / "m.onnx.data").exists()


def test_random_bytes_are_refused_or_read_but_never_crash():
    rng = np.random.default_rng(0)
    content = bytearray(chain(10).SerializeToString())
    for _ in range(300):
        damaged = bytearray(content)
        for position in rng.integers(0, len(damaged), 4):
            damaged[position] = rng.integers(0, 256)
        with contextlib.suppress(DwrError):
            result = onnx_rewrite(files.parse(bytes(damaged), "x"), verify=False, policy="dense")
            assert result.model.ByteSize() > 0
