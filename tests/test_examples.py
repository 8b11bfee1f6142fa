"""The scripts of examples/ run as a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(path: Path, *arguments: str) -> list[str]:
    """The lines that a script prints; nothing may come out on its standard error."""
    result = subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_there_are_no_others() -> None:
    assert [path.stem for path in EXAMPLES] == ["export_pipeline", "training_loop"]


def test_export_pipeline(tmp_path: Path) -> None:
    lines = run(ROOT / "examples" / "export_pipeline.py", str(tmp_path))
    assert lines[0].startswith("rewrote 13 depthwise convolutions")
    assert [line.partition(":")[0] for line in lines[-2:]] == ["wrote fast.onnx", "wrote fast.pt2"]
    model = onnx.load(tmp_path / "fast.onnx")
    onnx.checker.check_model(model)
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    shapes = [weights[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    assert len(shapes) == 27
    assert all(shape[1] > 1 for shape in shapes)


def test_training_loop() -> None:
    lines = run(ROOT / "examples" / "training_loop.py")
    assert lines[0].startswith("rewrote 13 depthwise convolutions")
    assert lines[-1].endswith("outputs equal: True")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 70
