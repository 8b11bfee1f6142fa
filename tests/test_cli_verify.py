"""``dwr-verify`` as a user meets it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dwr_rewrite.cli.verify import main
from dwr_rewrite.equivalence.samples import KINDS
from dwr_rewrite.passes.onnx import onnx_rewrite
from models.handmade import chain


@pytest.fixture
def verify(monkeypatch, capsys):
    """Runs the command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["dwr-verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "original.onnx"
    onnx.save(chain(20, channels=8, size=9), path)
    return path


@pytest.fixture
def fast(original, tmp_path):
    onnx_rewrite(original, tmp_path / "fast.onnx", policy="blocks:4", verify=False)
    return tmp_path / "fast.onnx"


def test_a_rewritten_model_is_proved_and_observed(verify, original, fast):
    code, out, err = verify(original, fast)
    assert (code, err) == (0, "")
    assert "Equivalent." in out
    assert "Proved: 2 of 2 rewritten convolutions" in out
    assert "0 leaks" in out


def test_a_model_equals_itself(verify, original):
    code, out, _ = verify(original, original)
    assert code == 0
    assert "no convolution differs" in out


def packed(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if "_dwr" in t.name)


def set_weight(position, value):
    def change(model: onnx.ModelProto) -> None:
        tensor = packed(model)
        array = numpy_helper.to_array(tensor).copy()
        array[position] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return change


def set_attribute(name, values):
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Conv")
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, values)])

    return change


def add_bias(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    bias = np.zeros(8, np.float32)
    bias[5] = 1e-3
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    del node.input[2:]
    node.input.append("bias")


def cut_output(model: onnx.ModelProto, start: int, end: int) -> None:
    """The model's output becomes a part of what it was, along the last axis."""
    old = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["whole" if name == old else name for name in node.output]
    for name, value in (("starts", start), ("ends", end), ("axes", 3)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    model.graph.node.append(helper.make_node("Slice", ["whole", "starts", "ends", "axes"], [old]))
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_param = "width"


def rename_output(model: onnx.ModelProto) -> None:
    old, new = model.graph.output[0].name, "other"
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
    model.graph.output[0].name = new


WRONG = {
    "a wrong weight in one channel": (set_weight((3, 3, 1, 1), 0.5), "output channel 3"),
    "a leak between two channels": (set_weight((3, 2, 1, 1), 0.5), "channel"),
    "a padding that is off by one": (set_attribute("pads", [0, 1, 2, 1]), "pads"),
    "a swapped stride": (set_attribute("strides", [2, 2]), "stride"),
    "a bias that is off by 1e-3": (add_bias, "bias"),
    "a NaN on one side": (set_weight((3, 3, 1, 1), np.nan), "became Inf or NaN"),
    "an output of the wrong shape": (lambda m: cut_output(m, 0, 2), "became float32 [2, 8, 9, 2]"),
    "an empty output": (lambda m: cut_output(m, 0, 0), "became float32 [2, 8, 9, 0]"),
    "an output of another name": (rename_output, "became ['other']"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_is_refused_and_named(name, verify, original, fast, tmp_path):
    change, word = WRONG[name]
    model = onnx.load(fast)
    change(model)
    onnx.save(model, fast)
    code, out, err = verify(original, fast, "--report", tmp_path / "r.json")
    assert code == 1
    assert "Not equivalent." in out
    assert word in out
    assert err.startswith("dwr-verify: error: the candidate is not equivalent")
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == "not equivalent"


def test_the_site_to_blame_is_found_and_the_smallest_failing_model_written(
    verify, original, fast, tmp_path
):
    """Without the tool's marks nothing is proved, so the blame is found by running hybrids."""
    model = onnx.load(fast)
    set_weight((3, 3, 1, 1), 0.5)(model)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, fast)
    code, out, _ = verify(original, fast, "--report", tmp_path / "r.json")
    assert code == 1
    culprits = json.loads((tmp_path / "r.json").read_text())["verification"]["culprits"]
    (site,) = culprits["sites"]
    reader = next(n for n in model.graph.node if packed(model).name in n.input)
    assert site == reader.name
    assert f"To blame: {site}" in out
    assert verify(original, tmp_path / "r.minimal.onnx")[0] == 1
    differing = [
        node.name
        for node, other in zip(
            onnx.load(original).graph.node, onnx.load(tmp_path / "r.minimal.onnx").graph.node,
            strict=True,
        )
        if node.input != other.input
    ]  # fmt: skip
    assert differing == [site]


def test_what_cannot_be_checked_is_no_pass(verify, tmp_path):
    """A random operator gives two results for one input."""
    node = helper.make_node("RandomNormalLike", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, 1, [1, 4, 8]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    path = tmp_path / "random.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    code, out, err = verify(path, path)
    assert code == 2
    assert "Not checked." in out
    assert "Equivalent" not in out
    assert "two results for one input" in err


def test_two_runs_give_the_same_report_but_for_times_and_host(verify, original, fast, tmp_path):
    reports = []
    for name in ("one.json", "two.json"):
        verify(original, fast, "--report", tmp_path / name, "--seed", 3)
        report = json.loads((tmp_path / name).read_text())
        report.pop("environment")
        report["command"] = report["command"].replace(name, "r.json")
        report["verification"].pop("seconds")
        reports.append(json.dumps(report))
    assert reports[0] == reports[1]
    verify(original, fast, "--report", tmp_path / "other.json", "--seed", 4)
    other = json.loads((tmp_path / "other.json").read_text())
    assert other["verification"]["cases"] != json.loads(reports[0])["verification"]["cases"]


def test_a_folder_of_real_inputs_gives_a_case_for_each_file(verify, original, fast, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / "data" / name, np.ones((1, 8, 9, 9), np.float32))
    code, out, _ = verify(original, fast, "--input", tmp_path / "data", "--json")
    assert code == 0
    cases = json.loads(out)["verification"]["cases"]
    assert {"a.npy", "b.npy", *KINDS} <= {case["name"] for case in cases}
    assert json.loads(out)["verification"]["tapped"] == "a.npy"


def test_times_stand_beside_the_verdict(verify, original, fast, tmp_path):
    code, out, _ = verify(original, fast, "--time", "--provider", "cpu", "--json")
    assert code == 0
    (found,) = json.loads(out)["runtime"]["measurements"]
    for model in ("reference", "candidate"):
        assert 0 < found[model]["low"] <= found[model]["median"] <= found[model]["high"]
    change, _ = WRONG["a wrong weight in one channel"]
    model = onnx.load(fast)
    change(model)
    onnx.save(model, fast)
    code, out, _ = verify(original, fast, "--time", "--provider", "cpu", "--json")
    assert (code, json.loads(out)["runtime"]) == (1, None)


def test_the_smallest_model_never_takes_an_inputs_place(verify, original, fast, tmp_path):
    """A model that an earlier failure left beside a report, verified with the same report."""
    fast.rename(tmp_path / "r.minimal.onnx")
    before = (tmp_path / "r.minimal.onnx").read_bytes()
    for models in (
        [original, tmp_path / "r.minimal.onnx"],
        [tmp_path / "r.minimal.onnx", original],
    ):
        code, _, err = verify(*models, "--report", tmp_path / "r.html")
        assert code == 2
        assert "r.minimal.onnx: would overwrite" in err
    assert (tmp_path / "r.minimal.onnx").read_bytes() == before


MISTAKES = {
    "a provider for nothing": (lambda d, o: [o, o, "--provider", "cpu"], "add --time"),
    "an option for nothing": (lambda d, o: [o, o, "--provider-option", "a=1"], "add --time"),
    "an option that is none": (
        lambda d, o: [o, o, "--time", "--provider-option", "=1"], "KEY=VALUE expected"),
    "an option that the provider has not": (
        lambda d, o: [o, o, "--time", "--provider", "cpu", "--provider-option", "a=1"],
        "takes no options; found a"),
    "a provider that is not there": (
        lambda d, o: [o, o, "--time", "--provider", "abacus"], "abacus"),
    "no such file": (lambda d, o: [o, d / "none.onnx"], "no such file"),
    "no model": (lambda d, o: [o, __file__], "not an ONNX model"),
    "a report that would take the candidate's place": (
        lambda d, o: [o, o, "--report", o], "which belongs to the"),
    "a report of unknown kind": (lambda d, o: [o, o, "--report", d / "r.pdf"], ".html or .md"),
    "an empty folder of inputs": (lambda d, o: [o, o, "--input", d / "empty"], "holds no .npy"),
    "an unknown input": (lambda d, o: [o, o, "--shape", "z:1x2"], "no such input"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, verify, original, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments, message = MISTAKES[name]
    before = original.read_bytes()
    code, out, err = verify(*arguments(tmp_path, original))
    assert (code, out) == (2, "")
    assert err.startswith("dwr-verify: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert original.read_bytes() == before
