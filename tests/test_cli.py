"""The command line as a user meets it: exit codes, streams, files, one line for each mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dwr_rewrite import __version__
from dwr_rewrite.cli.rewrite import main, parse_size
from dwr_rewrite.equivalence.samples import KINDS
from dwr_rewrite.errors import DwrError
from models.handmade import chain, conv_model

FIXED = "--policy", "blocks:32"
COMMAND = [sys.executable, "-c", "from dwr_rewrite.cli.rewrite import main; main()"]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(chain(20, channels=8, size=9), path)
    return path


@pytest.fixture
def dwr(monkeypatch, capfd):
    """Runs the command in this process; returns (exit code, standard output, standard error)."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dwr-rewrite", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code or 0, *capfd.readouterr())

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_a_rewrite_prints_a_summary_and_writes_one_file(dwr, model, tmp_path):
    code, out, err = dwr(model, "-o", tmp_path / "fast.onnx", *FIXED, "-v")
    assert (code, err) == (0, "")
    assert "Equivalent." in out
    assert "n9: Conv 3x3 C=8 float32 -> dense precomputed" in out
    assert f"Written: {tmp_path / 'fast.onnx'}" in out
    assert set(files(tmp_path)) == {"model.onnx", "fast.onnx"}
    groups = [a.i for n in onnx.load(tmp_path / "fast.onnx").graph.node for a in n.attribute
              if a.name == "group"]  # fmt: skip
    assert groups == [1, 1]


def test_json_is_the_report_and_nothing_else(dwr, model, tmp_path):
    code, out, _ = dwr(model, "-o", tmp_path / "fast.onnx", "--json", "--policy", "blocks:4",
                       "--report", tmp_path / "report.json")  # fmt: skip
    report = json.loads(out)
    assert code == 0
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["summary"]["forms"] == {"blocks:4": 2}
    assert report["verdict"] == "equivalent"
    cases = report["verification"]["cases"]
    assert {case["name"] for case in cases} == {*KINDS, "normal 1x8x9x9"}
    assert all(c["measured"] <= c["tolerance"] for case in cases for c in case["comparisons"])
    assert report["sites"][0]["spec"]["kernel"] == [3, 3]


def test_a_dry_run_writes_nothing(dwr, model, tmp_path):
    code, out, _ = dwr(model, "--dry-run", "--policy", "dense", "-o", tmp_path / "fast.onnx")
    assert code == 0
    assert "sites: dense" in out
    assert "Not written: dry run" in out
    assert set(files(tmp_path)) == {"model.onnx"}


def test_a_pipe_carries_the_model_and_the_summary_goes_to_standard_error(model):
    done = subprocess.run([*COMMAND, "-", "-o", "-", *FIXED], input=model.read_bytes(),
                          capture_output=True, check=True)  # fmt: skip
    assert len(onnx.load_model_from_string(done.stdout).graph.node) == 20
    assert b"Equivalent." in done.stderr
    assert b"Written: standard output" in done.stderr


def test_nothing_to_do_is_said_and_is_no_failure(dwr, tmp_path):
    onnx.save(conv_model(groups=1), tmp_path / "plain.onnx")
    code, out, _ = dwr(tmp_path / "plain.onnx", "-o", tmp_path / "out.onnx")
    assert code == 0
    assert "Nothing to do" in out
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(tmp_path / "plain.onnx")


def test_restore_gives_the_file_back(dwr, model, tmp_path):
    for options in ([], ["--weights", "linked"]):
        assert dwr(model, "-o", tmp_path / "fast.onnx", *FIXED, *options)[0] == 0
        code, out, _ = dwr(tmp_path / "fast.onnx", "-o", tmp_path / "back.onnx", "--restore")
        assert code == 0
        assert "Equivalent." in out
        assert (tmp_path / "back.onnx").read_bytes() == model.read_bytes()


def test_real_inputs_and_shapes(dwr, model, tmp_path):
    x = np.random.default_rng(0).random((3, 8, 9, 9)).astype("f4")
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "all.npz", x=x)
    np.savez(tmp_path / "one.npz", anything=x)
    items = f"x:{tmp_path}/x.npy", f"{tmp_path}/all.npz", f"x:{tmp_path}/one.npz"
    for item in items:
        code, out, err = dwr(
            model, "-o", tmp_path / "f.onnx", *FIXED, "--input", item, "--shape", "x:2x8x9x9"
        )
        assert (code, err) == (0, "")
        assert "given" in out


def arrays(model: onnx.ModelProto) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


def test_external_data_in_and_out(dwr, tmp_path):
    proto = chain(20, channels=8, size=9)
    copy = chain(20, channels=8, size=9)  # saving takes its tensors out of it
    onnx.save(
        copy, tmp_path / "in.onnx", save_as_external_data=True, location="in.bin", size_threshold=0
    )
    code, _, err = dwr(tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--save-external-data",
                       *FIXED)  # fmt: skip
    assert (code, err) == (0, "")
    assert set(files(tmp_path)) == {"in.onnx", "in.bin", "out.onnx", "out.onnx.data"}
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert all(t.data_location == TensorProto.EXTERNAL for t in written.graph.initializer)
    assert dwr(tmp_path / "out.onnx", "-o", tmp_path / "back.onnx", "--restore")[0] == 0
    back = onnx.load(tmp_path / "back.onnx")
    assert back.graph.node == proto.graph.node
    assert arrays(back) == arrays(proto)


def broken(path: Path, change) -> Path:
    path.write_bytes(change(chain(20).SerializeToString()))
    return path


def outside(folder: Path) -> Path:
    """A model whose external data would lie outside its folder."""
    proto = conv_model()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (folder / "outside.onnx").write_bytes(proto.SerializeToString())
    return folder / "outside.onnx"


def given(*options: str):
    """The arguments of a rewrite from the model to ``o``, with these options."""
    return lambda d: [d / "model.onnx", "-o", d / "o", *options]


def test_a_model_that_is_not_faster_is_kept_byte_for_byte(dwr, model, tmp_path):
    """No form is a thousand times faster, and every form is a thousandth as fast."""
    command = [model, "-o", tmp_path / "fast.onnx", *FIXED, "--provider", "cpu", "--json",
               "--min-speedup"]  # fmt: skip
    code, out, _ = dwr(*command, "1000")
    kept = json.loads(out)
    assert code == 0
    assert (tmp_path / "fast.onnx").read_bytes() == model.read_bytes()
    assert kept["summary"]["rewritten"] == 0
    assert kept["notes"] == ["Kept the original: no faster form on CPU."]
    assert {site["reason"]["code"] for site in kept["sites"]} == {"not-faster"}
    assert kept["reference"]["sha256"] == kept["candidate"]["sha256"]
    code, out, _ = dwr(*command, "0.001")
    assert code == 0
    assert json.loads(out)["summary"]["rewritten"] == 2
    assert json.loads(out)["runtime"]["measurements"][0]["candidate"]["median"] > 0
    assert (tmp_path / "fast.onnx").read_bytes() != model.read_bytes()


def test_without_flags_it_says_what_it_rests_on(dwr, model, tmp_path):
    """Whatever there is here: a GPU is measured, and without one the bytes are the same."""
    code, out, err = dwr(model, "-o", tmp_path / "fast.onnx")
    assert (code, err) == (0, "")
    assert ("Measured on" in out) != ("Kept the original: there is no GPU here" in out)
    if "Measured on" not in out or "Kept the original" in out:
        assert (tmp_path / "fast.onnx").read_bytes() == model.read_bytes()


def test_the_cpu_is_measured_where_the_user_says_so(dwr, model, tmp_path):
    code, out, err = dwr(model, "-o", tmp_path / "fast.onnx", "--target", "cpu", "--json",
                         "--budget", "60", "--min-speedup", "1000")  # fmt: skip
    assert (code, err) == (0, "")
    assert (tmp_path / "fast.onnx").read_bytes() == model.read_bytes()
    report = json.loads(out)
    assert report["notes"] == ["Measured on CPU (CPUExecutionProvider).",
                               "Kept the original: no faster form on CPU."]  # fmt: skip
    forms = {option["form"] for site in report["sites"] for option in site["choices"][0]["options"]}
    assert forms == {"keep", "dense"}


def test_a_model_that_is_not_faster_is_said_to_be_kept(dwr, model, tmp_path):
    code, out, _ = dwr(model, "-o", tmp_path / "fast.onnx", *FIXED, "--provider", "cpu",
                       "--min-speedup", "1000")  # fmt: skip
    assert code == 0
    assert "Kept the original: no faster form on CPU" in out
    assert "Speed: inference" in out
    assert "Nothing to do" not in out


def test_a_kept_original_from_a_pipe_or_with_external_data_is_whole(dwr, model, tmp_path):
    onnx.save(onnx.load(model), tmp_path / "split.onnx", save_as_external_data=True,
              location="split.data", size_threshold=0)  # fmt: skip
    code, _, _ = dwr(tmp_path / "split.onnx", "-o", tmp_path / "fast.onnx", *FIXED,
                     "--provider", "cpu", "--min-speedup", "1000")  # fmt: skip
    assert code == 0
    one, other = onnx.load(tmp_path / "fast.onnx"), onnx.load(model)
    assert [n.op_type for n in one.graph.node] == [n.op_type for n in other.graph.node]
    arrays = ({t.name: numpy_helper.to_array(t).tobytes() for t in m.graph.initializer}
              for m in (one, other))  # fmt: skip
    assert next(arrays) == next(arrays)
    piped = subprocess.run(
        [*COMMAND, "-", "-o", tmp_path / "piped.onnx", *FIXED, "--provider", "cpu",
         "--min-speedup", "1000", "--save-external-data"],
        input=model.read_bytes(), capture_output=True, check=True,
    )  # fmt: skip
    assert b"Kept the original" in piped.stdout
    assert onnx.load(tmp_path / "piped.onnx") == onnx.load(model)


def damage_database() -> bool:
    return Path(os.environ["DWR_TUNING_DATABASE"]).write_bytes(b"SQLite format 3 and no more") > 0


MISTAKES = {
    "missing": (lambda d: [d / "no.onnx", "-o", d / "o"], "no such file"),
    "directory": (lambda d: [d, "-o", d / "o"], "is a directory"),
    "empty": (lambda d: [broken(d / "e", lambda b: b""), "-o", d / "o"], "is empty"),
    "text": (lambda d: [broken(d / "t", lambda b: b"hello, world\n" * 9), "-o", d / "o"],
             "not an ONNX model"),
    "truncated": (lambda d: [broken(d / "t", lambda b: b[: len(b) // 2]), "-o", d / "o"],
                  "not an ONNX model, or it is cut short"),
    "no graph": (lambda d: [broken(d / "t", lambda b: b"\x08\x08"), "-o", d / "o"], "no graph"),
    "no output": (lambda d: [d / "model.onnx"], "-o OUTPUT"),
    "output is input": (lambda d: [d / "model.onnx", "-o", d / "model.onnx"], "would overwrite"),
    "output is a link to the input": (lambda d: [d / "model.onnx", "-o", d / "link"],
                                      "would overwrite"),
    "output is a folder": (lambda d: [d / "model.onnx", "-o", d], "is a directory"),
    "no such folder": (lambda d: [d / "model.onnx", "-o", d / "no" / "o"], "does not exist"),
    "output is a device": (lambda d: [d / "model.onnx", "-o", "/dev/null"], "not a regular file"),
    "unknown option": (lambda d: [d / "model.onnx", "--fast"], "--fast"),
    "policy": (given("--policy", "best"), "policy 'best'"),
    "an option without a value": (given("--provider-option", "use_tf32"), "KEY=VALUE expected"),
    "an option twice": (given(*("--provider-option", "a=1") * 2), "each key once"),
    "options for a provider without any": (
        given("--provider", "cpu", "--provider-option", "use_tf32=0"), "takes no options"),
    "options for no provider": (given(*FIXED, "--provider-option", "use_tf32=0"), "name it"),
    "a provider that is not there": (given("--provider", "abacus"), "this onnxruntime has"),
    "a target that nobody knows": (given("--target", "abacus"), "no target is known as 'abacus'"),
    "a target without a name": (given("--target", "!"), "the name of a device expected"),
    "a target for a fixed policy": (given(*FIXED, "--target", "H200"), "leave one of them out"),
    "a provider elsewhere": (given("--provider", "cpu", "--target", "H200"),
                             "measures on CPU (CPUExecutionProvider), which is not the target"),
    "no budget": (given("--budget", "nan"), "--budget"),
    "a negative budget": (given("--budget", "-1"), "--budget"),
    "an endless budget": (given("--budget", "inf"), "a finite number, 0 or more, expected"),
    "slower on purpose": (given("--min-speedup", "0.9"), "1 or more expected"),
    "a damaged database": (lambda d: given()(d) if damage_database() else [],
                           "the tuning results cannot be used"),
    "weights": (given("--weights", "x"), "'x' is not one of 'precomputed', 'linked'"),
    "growth": (given("--max-growth", "lots"), "'lots'"),
    "regex": (given("--include", "["), "include '['"),
    "seed": (given("--seed", "x"), "--seed"),
    "shape": (given("--shape", "x:axb"), "NAME:1x3x224x224"),
    "shape of no input": (given("--shape", "z:1x2"), "its inputs are 'x'"),
    "shape that does not fit": (given("--shape", "x:1x7x9x9"),
                                "does not fit the input, which is ?x8x9x9"),
    "input missing": (given("--input", "x:no.npy"), "no such file"),
    "input not numpy": (lambda d: given("--input", f"x:{broken(d / 'n.npy', lambda b: b'x')}")(d),
                        "not a numpy file"),
    "timed and restored": (given("--provider", "cpu", "--restore"), "is not timed"),
    "the smallest failing model over the input": (
        lambda d: [(d / "model.onnx").rename(d / "r.minimal.onnx"), "-o", d / "o",
                   "--report", d / "r.json"], "would overwrite"),
    "timed but not checked": (given(*FIXED, "--provider", "cpu", "--no-verify"),
                              "needs the check"),
    "input of another kind": (given("--input", "n.txt"), "NAME:file.npy"),
    "json and a pipe": (lambda d: [d / "model.onnx", "-o", "-", "--json"], "--report"),
    "external data outside": (lambda d: [outside(d), "-o", d / "o"],
                              "external data cannot be read"),
    "report into nowhere": (lambda d: given("--report", d / "no" / "r.json")(d), "does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_every_file_alone(name, dwr, model, tmp_path):
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "o").write_bytes(b"precious")
    arguments, message = MISTAKES[name]
    prepared = arguments(tmp_path)
    before = files(tmp_path)
    code, out, err = dwr(*prepared)
    assert code == 2
    assert out == ""
    assert err.startswith("dwr-rewrite: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in err
    assert files(tmp_path) == before


def test_a_wrong_rewrite_is_refused_and_nothing_is_written(dwr, model, tmp_path, monkeypatch):
    """The twin of every passing run: a lowering that puts one filter into the wrong column."""
    from dwr_rewrite.recipe import Packing

    right = Packing.pack
    monkeypatch.setattr(Packing, "pack", lambda *args: np.roll(right(*args), 1, axis=1))
    (tmp_path / "fast.onnx").write_bytes(b"precious")
    code, out, err = dwr(
        model, "-o", tmp_path / "fast.onnx", *FIXED, "--report", tmp_path / "r.json"
    )
    assert (code, out) == (1, "")
    assert "not equivalent: site 'n9': its weight is another one" in err
    assert (tmp_path / "fast.onnx").read_bytes() == b"precious"
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["verdict"], report["candidate"]["name"]) == ("not equivalent", None)
    code, out, _ = dwr(model, "-o", tmp_path / "fast.onnx", *FIXED, "--json")
    assert (code, json.loads(out)["verdict"]) == (1, "not equivalent")


@pytest.mark.parametrize(
    ("report", "lost"), [("model.onnx", "input"), ("link", "input"), ("fast.onnx", "output")]
)
def test_a_report_never_takes_a_models_place(report, lost, dwr, model, tmp_path):
    (tmp_path / "link").symlink_to(model)
    before = files(tmp_path)
    code, _, err = dwr(model, "-o", tmp_path / "fast.onnx", "--report", tmp_path / report)
    assert code == 2
    assert "would overwrite" in err
    assert lost in err
    assert files(tmp_path) == before


def test_no_verify_writes_without_a_comparison_and_says_so(dwr, model, tmp_path):
    code, out, _ = dwr(model, "-o", tmp_path / "fast.onnx", *FIXED, "--no-verify")
    assert code == 0
    assert "Not checked" in out


def test_a_model_that_cannot_run_anywhere_is_not_written(dwr, tmp_path):
    proto = conv_model()
    proto.graph.node.append(helper.make_node("Mystery", ["y"], ["z"], domain="nobody"))
    proto.opset_import.append(helper.make_opsetid("nobody", 1))
    proto.graph.output[0].name = "z"
    onnx.save(proto, tmp_path / "m.onnx")
    code, _, err = dwr(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", *FIXED)
    assert code in (1, 2)
    assert "Mystery" in err
    assert not (tmp_path / "o.onnx").exists()
    assert dwr(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", *FIXED, "--no-verify")[0] == 0


def test_a_random_model_cannot_be_compared(dwr, tmp_path):
    proto = conv_model()
    proto.graph.node.append(helper.make_node("RandomNormalLike", ["y"], ["r"]))
    proto.graph.node.append(helper.make_node("Add", ["y", "r"], ["z"]))
    proto.graph.output[0].name = "z"
    onnx.save(proto, tmp_path / "m.onnx")
    code, _, err = dwr(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", *FIXED)
    assert code == 1
    assert "two results for one input" in err
    assert not (tmp_path / "o.onnx").exists()


def test_the_time_limit_ends_the_check(dwr, model, tmp_path):
    code, _, err = dwr(
        model, "-o", tmp_path / "fast.onnx", *FIXED, "--timeout", "1", "--shape", "x:256x8x9x9"
    )
    if code:  # a fast machine may be done within the second
        assert code == 1
        assert "--timeout" in err
        assert not (tmp_path / "fast.onnx").exists()


def test_a_crash_of_the_child_is_a_sentence(dwr, model, tmp_path, monkeypatch):
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr("dwr_rewrite.passes.onnx.check.WORKER", ["-c", crash])
    code, _, err = dwr(model, "-o", tmp_path / "fast.onnx", *FIXED)
    assert code == 1
    assert "SIGSEGV" in err
    assert not (tmp_path / "fast.onnx").exists()


def test_ctrl_c_is_130_and_leaves_no_files(model, tmp_path):
    command = [*COMMAND, model, "-o", tmp_path / "fast.onnx", *FIXED]
    child = subprocess.Popen(command, process_group=0, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)  # fmt: skip
    deadline = time.monotonic() + 30
    while not any(p.is_dir() for p in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)  # until the staging folder shows that the work is under way
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert b"interrupted" in err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_version_and_help(dwr):
    assert dwr("--version") == (0, f"dwr-rewrite {__version__}\n", "")
    code, out, _ = dwr("--help")
    assert code == 0
    for option in ("--policy", "--weights", "--freeze-weights", "--include", "--exclude",
                   "--max-growth", "--dry-run", "--json", "--report", "--no-verify", "--seed",
                   "--save-external-data", "--restore", "--input", "--shape", "--timeout",
                   "--version", "--target", "--provider", "--provider-option", "--budget",
                   "--min-speedup"):  # fmt: skip
        assert option in out


@pytest.mark.parametrize(("text", "size"), [
    ("0", 0), ("512", 512), ("4K", 4096), ("256M", 256 << 20), ("2g", 2 << 30), ("1GiB", 1 << 30),
])  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5M", "M", "1T"])
def test_sizes_that_are_none(text):
    with pytest.raises(DwrError, match="--max-growth"):
        parse_size(text)


def test_a_huge_declared_group_is_refused_before_it_is_allocated(dwr, tmp_path):
    """One tensor of 4 MiB asks for a dense weight of 4 TiB."""
    proto = conv_model(channels=1 << 20, kernel=(1, 2), spatial=(1, 2), bias=False)
    onnx.save(proto, tmp_path / "m.onnx")
    code, out, _ = dwr(tmp_path / "m.onnx", "--dry-run", "--policy", "dense")
    assert code == 0
    assert "past the limit of 256.0 MiB; raise it with --max-growth" in out


def test_initializers_keep_their_types(dwr, tmp_path):
    proto = conv_model(dtype="float16")
    onnx.save(proto, tmp_path / "m.onnx")
    code, _, _ = dwr(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", *FIXED)
    assert code == 0
    stored = onnx.load(tmp_path / "o.onnx").graph.initializer
    assert {numpy_helper.to_array(t).dtype.name for t in stored} == {"float16"}
