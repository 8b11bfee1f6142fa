"""The policy auto from a model to a file, on devices whose times are made up, and on the CPU."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx import files, onnx_rewrite, providers
from dwr_rewrite.passes.onnx.provider import CUDA, Provider
from dwr_rewrite.passes.onnx.rewrite import Options
from dwr_rewrite.passes.onnx.run import Rewrite, Run
from dwr_rewrite.passes.onnx.tune import OnnxBench, auto
from dwr_rewrite.passes.onnx.tune.auto import Interrupted
from dwr_rewrite.passes.onnx.tune.ground import Target
from dwr_rewrite.timing import FreeSetting, Paired, Speedup
from dwr_rewrite.tuning.database import Database
from models.handmade import conv_model
from tests.passes.onnx.tune.abacus import NAME, Abacus, faster, rewritten_nodes, slower, two_sites
from tests.tuning.fakes import samples

QUICK = Settings(kinds=("normal",))
NO_GPU = not any(
    name in providers.ort.get_available_providers() and not providers.refusal(Provider(name))
    for name in providers.PREFERRED
)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(two_sites(), path)
    return path


def run(engine, model, output=None, *, source=None, options=None, **fields) -> Rewrite:
    fields = {"settings": QUICK, "engine": engine, **fields}
    return Run(options or Options(), **fields)(source or files.read(model), output)


def codes(result: Rewrite) -> dict[str, str | None]:
    return {site.name: site.reason and site.reason.code for site in result.report.sites}


# ---------------------------------------------------------------------------- never slower


@pytest.mark.parametrize("options", [Options(), Options(weights="linked"),
                                     Options(freeze_weights=True)], ids=str)  # fmt: skip
def test_a_device_on_which_everything_is_slower_gets_the_same_bytes(options, model, tmp_path):
    result = run(Abacus(slower), model, tmp_path / "fast.onnx", options=options)
    assert (tmp_path / "fast.onnx").read_bytes() == model.read_bytes()
    assert result.model == onnx.load(model)
    assert result.report.after == result.report.before
    assert codes(result) == {"n9": "not-faster", "n19": "not-faster"}
    assert result.report.notes == (
        f"Measured on {NAME} ({CUDA}).", f"Kept the original: no faster form on {NAME}.",
    )  # fmt: skip


def test_the_twin_is_written_where_everything_is_faster(model, tmp_path):
    engine = Abacus(faster)
    result = run(engine, model, tmp_path / "fast.onnx")
    assert rewritten_nodes(tmp_path / "fast.onnx") == ("n9", "n19")
    assert result.report.verdict == "equivalent"
    assert result.report.runtime.trials[-1].accepted
    assert [provider for provider, _ in engine.timed] == [Provider(CUDA)]
    assert result.report.notes == (f"Measured on {NAME} ({CUDA}).",)
    assert {c.workload.batch for s in result.report.sites for c in s.choices} == {2}


def tensors(path) -> dict[str, bytes]:
    stored = onnx.load(path).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in stored}


def test_a_kept_model_from_a_pipe_or_with_external_data_is_whole(model, tmp_path):
    piped = files.read_stream(io.BytesIO(model.read_bytes()))
    result = run(Abacus(slower), model, tmp_path / "piped.onnx", source=piped)
    assert onnx.load(tmp_path / "piped.onnx") == onnx.load(model) == result.model
    onnx.save(onnx.load(model), tmp_path / "split.onnx", save_as_external_data=True,
              location="split.data", size_threshold=0)  # fmt: skip
    run(Abacus(slower), tmp_path / "split.onnx", tmp_path / "kept.onnx")
    assert tensors(tmp_path / "kept.onnx") == tensors(model)


def test_one_fast_site_is_rewritten_alone(model, tmp_path):
    def seconds(workload, form):
        return (faster if workload.spec.stride == (2, 2) else slower)(workload, form)

    result = run(Abacus(seconds), model, tmp_path / "fast.onnx")
    assert rewritten_nodes(tmp_path / "fast.onnx") == ("n19",)
    assert codes(result) == {"n9": "not-faster", "n19": None}
    assert result.report.verdict == "equivalent"


def seconds_more_for_n9(workload, form):
    """Both sites gain; the one in steps of two gains less."""
    return 1e-3 if form == "keep" else 0.8e-3 if workload.spec.stride == (2, 2) else 0.5e-3


def test_a_site_that_spoils_the_model_is_dropped(model, tmp_path):
    engine = Abacus(seconds_more_for_n9, node={"n19": 20e-3})
    result = run(engine, model, tmp_path / "fast.onnx")
    assert rewritten_nodes(tmp_path / "fast.onnx") == ("n9",)
    assert codes(result) == {"n9": None, "n19": "not-faster"}
    assert [changed for _, changed in engine.timed] == [("n9", "n19"), ("n9",)]
    trials = result.report.runtime.trials
    assert [(trial.sites, trial.accepted) for trial in trials] == [(2, False), (1, True)]


def test_where_every_site_spoils_the_model_it_is_kept(model, tmp_path):
    engine = Abacus(seconds_more_for_n9, node={"n9": 1.01e-3, "n19": 1.01e-3})
    result = run(engine, model, tmp_path / "fast.onnx")
    assert (tmp_path / "fast.onnx").read_bytes() == model.read_bytes()
    assert [trial.accepted for trial in result.report.runtime.trials] == [False, False]
    assert f"Kept the original: no faster form on {NAME}." in result.report.notes


def test_the_margin_is_the_users(model):
    assert run(Abacus(faster), model, target=Target(min_speedup=1.05)).report.changed
    assert not run(Abacus(faster), model, target=Target(min_speedup=1.2)).report.changed


def test_a_wrong_form_is_not_written_however_fast_it_is(model, tmp_path, monkeypatch):
    from dwr_rewrite.errors import NotEquivalentError
    from dwr_rewrite.recipe import Packing

    right = Packing.pack
    monkeypatch.setattr(Packing, "pack", lambda *args: np.roll(right(*args), 1, axis=1))
    with pytest.raises(NotEquivalentError):
        run(Abacus(faster), model, tmp_path / "fast.onnx")
    assert not (tmp_path / "fast.onnx").exists()


def test_without_the_check_a_faster_model_is_written_all_the_same(model, tmp_path):
    result = run(Abacus(faster), model, tmp_path / "fast.onnx", verify=False)
    assert rewritten_nodes(tmp_path / "fast.onnx") == ("n9", "n19")
    assert result.report.verdict == "not checked"


@pytest.fixture
def overridable(model):
    """The model with all its weights among the inputs."""
    changed = onnx.load(model)
    for tensor in changed.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        changed.graph.input.append(value)
    onnx.save(changed, model)
    return model


class Watching(Abacus):
    """Notes how many inputs both models have that it times; those without inputs are faster."""

    def time(self, models, *rest):
        counts = [len(onnx.load(path).graph.input) for path in models]
        self.asked.append(tuple(counts))
        found = super().time(models, *rest)
        return replace(found, pair=Paired(*(samples(1e-3 * n) for n in counts)))


def test_weights_are_frozen_though_no_form_is_faster(overridable, tmp_path):
    output = tmp_path / "out.onnx"
    options = Options(freeze_weights=True)
    run(Abacus(slower), overridable, output, options=options, verify=False)
    assert [value.name for value in onnx.load(output).graph.input] == ["x"]


@pytest.mark.parametrize("policy", ["auto", "blocks:8"])
def test_constant_weights_are_no_merit_of_the_rewrite(overridable, tmp_path, policy):
    engine, options = Watching(faster), Options(policy, freeze_weights=True)
    run(engine, overridable, tmp_path / "o.onnx", options=options, target=Target("cuda"))
    assert engine.asked[-1] == (1, 1)


def test_what_constant_weights_would_give_is_told(overridable, tmp_path):
    engine = Watching(slower)
    report = run(engine, overridable, tmp_path / "o.onnx").report
    (told,) = report.runtime.settings
    assert (told.name, engine.asked[0]) == ("constant weights", (3, 1))
    assert told.speedup.median == pytest.approx(3)
    assert "--freeze-weights" in told.how
    assert report.runtime.setting == ""
    assert (tmp_path / "o.onnx").read_bytes() == overridable.read_bytes()


# ---------------------------------------------------------------------------- settings come first


def setting(name: str, factor: float, alike: bool = True) -> FreeSetting:
    return FreeSetting(name, "how", alike, Speedup(factor, factor - 0.01, factor + 0.01))


def test_both_models_are_given_the_best_setting_that_rounds_alike(model):
    settings = (
        setting("prefer_nhwc=1", 1.5), setting("enable_cuda_graph=1", 1.2),
        setting("use_tf32=1", 3.0, alike=False),
        FreeSetting("use_tf32=0", "how", True, None, "it did not run"),
    )  # fmt: skip
    engine = Abacus(faster, settings=settings)
    options = {"use_tf32": "0"}
    report = run(engine, model, target=Target(options=options)).report
    used = Provider(CUDA, {**options, "prefer_nhwc": "1"})
    given = Provider(CUDA, options)
    assert [provider for provider, _ in engine.timed] == [used, given]
    names = [row.name for row in report.runtime.measurements]
    assert names == ["inference, x 2x3", "inference, x 2x3, as given"]
    assert {(w.layout, w.tf32) for w in engine.asked} == {("channels_last", False)}
    assert (report.runtime.setting, report.runtime.settings) == ("prefer_nhwc=1", settings)


def test_what_is_faster_only_with_advice_is_not_taken(model, tmp_path):
    """The whole plan, and then the better half of it, is slower as the provider was given."""
    settings = (setting("prefer_nhwc=1", 1.5),)
    engine = Abacus(faster, settings=settings, needs="prefer_nhwc")
    output = tmp_path / "out.onnx"
    report = run(engine, model, output).report
    assert output.read_bytes() == model.read_bytes()
    assert [trial.accepted for trial in report.runtime.trials] == [False, False]
    assert all(trial.speedup.high < 1 for trial in report.runtime.trials)
    assert len(engine.timed) == 4


def test_settings_are_told_though_no_form_is_faster(model):
    report = run(Abacus(slower, settings=(setting("prefer_nhwc=1", 1.5),)), model).report
    assert report.runtime.measurements == report.runtime.trials == ()
    assert report.runtime.settings[0].name == report.runtime.setting == "prefer_nhwc=1"


def test_a_setting_within_the_noise_is_not_used(model):
    engine = Abacus(slower, settings=(setting("prefer_nhwc=1", 1.02),))
    assert run(engine, model).report.runtime.setting == ""
    assert {w.layout for w in engine.asked} == {"nchw"}


def test_a_gpu_that_cannot_time_the_model_decides_nothing_unless_it_was_named(model, tmp_path):
    engine = Abacus(faster, refusal="the reference has operators that it leaves to the CPU")
    result = run(engine, model, tmp_path / "fast.onnx")
    assert (tmp_path / "fast.onnx").read_bytes() == model.read_bytes()
    assert "has operators that it leaves to the CPU" in result.report.notes[0]
    with pytest.raises(DwrError, match=r"^the reference has operators"):
        run(engine, model, tmp_path / "fast.onnx", target=Target("cuda"))


# ------------------------------------------------------------------------------------ the database


def test_what_was_measured_is_not_measured_again(model):
    assert run(Abacus(faster), model).report.changed
    again = Abacus(faster)
    assert run(again, model).report.changed
    assert again.asked == []
    assert len(again.timed) == 1  # the whole model is
    other = Abacus(faster)
    run(other, model, target=Target(options={"use_tf32": "0"}))
    assert len(other.asked) == 2  # another device, as far as times go


def test_an_interrupt_keeps_what_was_measured(model, tmp_path):
    (tmp_path / "fast.onnx").write_bytes(b"precious")
    with pytest.raises(Interrupted, match=r"^interrupted; nothing was written; 1 measurements are"):
        run(Abacus(faster, patience=1), model, tmp_path / "fast.onnx")
    assert (tmp_path / "fast.onnx").read_bytes() == b"precious"
    engine = Abacus(faster)
    run(engine, model)
    assert len(engine.asked) == 1


def test_an_interrupt_on_the_command_line_is_130(model, tmp_path, monkeypatch, capsys):
    from dwr_rewrite.cli.rewrite import main

    engine = Abacus(faster, patience=1)
    monkeypatch.setattr("dwr_rewrite.passes.onnx.tune.engine.OnnxBench", engine.bench)
    monkeypatch.setattr("sys.argv", ["dwr-rewrite", str(model), "-o", str(tmp_path / "fast.onnx"),
                                     "--provider", "abacus"])  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    message = "interrupted; nothing was written; 1 measurements are kept"
    assert capsys.readouterr().err == f"dwr-rewrite: error: {message}\n"
    assert not (tmp_path / "fast.onnx").exists()


def test_a_dry_run_tells_what_is_known_and_measures_nothing(model):
    engine = Abacus(faster)
    report = run(engine, model, verify=False, measure=False).report
    assert report.notes[0].startswith(f"0 of 2 sizes are known on {NAME}")
    assert (engine.asked, engine.timed, report.changed) == ([], [], [])
    run(engine, model)
    engine = Abacus(faster)
    report = run(engine, model, verify=False, measure=False).report
    assert report.notes[0].startswith(f"2 of 2 sizes are known on {NAME}")
    assert (engine.asked, engine.timed, len(report.changed)) == ([], [], 2)


# ------------------------------------------------------------------------ devices that are not here


def test_what_was_recorded_of_another_device_decides(model, tmp_path):
    run(Abacus(faster), model)
    host = Abacus(slower, name="another GPU")
    result = run(host, model, tmp_path / "fast.onnx", target=Target(name="abacus 9"))
    assert rewritten_nodes(tmp_path / "fast.onnx") == ("n9", "n19")
    assert (host.asked, host.timed) == ([], [])
    assert result.report.notes == (
        f"Recorded on {NAME} ({CUDA}), which is not here.",
        "The whole model was not timed: do that on abacus 9 with dwr-verify --time.",
    )
    assert result.report.runtime is None


class Eager:
    """A cost model that expects much of every form."""

    margin, sentence = 1.5, "modelled for an abacus, not measured"

    def seconds(self, workload, recipe) -> float:
        return 1.0 if recipe.packing.width == 1 else 0.5


def test_without_records_a_cost_model_decides(model, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "model_of", lambda name, database: {"H200": Eager()}[name])
    host = Abacus(slower, target=False)
    result = run(host, model, tmp_path / "fast.onnx", target=Target(name="H200"))
    assert rewritten_nodes(tmp_path / "fast.onnx") == ("n9", "n19")
    assert result.report.notes == (
        "Modelled for an abacus, not measured.",
        "The whole model was not timed: do that on H200 with dwr-verify --time.",
    )
    assert (host.asked, host.timed, result.report.runtime) == ([], [], None)


def test_a_target_that_nobody_knows_is_refused(model, tmp_path):
    host = Abacus(slower, target=False)
    with pytest.raises(DwrError, match="no target is known as 'H2000'"):
        run(host, model, tmp_path / "fast.onnx", target=Target(name="H2000"))


def test_a_cost_model_that_expects_nothing_keeps_the_original(model, tmp_path):
    host = Abacus(slower, target=False)
    result = run(host, model, tmp_path / "fast.onnx", target=Target(name="H200"))
    assert (tmp_path / "fast.onnx").read_bytes() == model.read_bytes()
    assert result.report.notes[1] == (
        "Kept the original: no form is expected to be faster on H200."
    )


def test_without_any_device_the_original_is_kept_and_what_to_do_is_said(model, tmp_path):
    result = run(Abacus(faster, target=False), model, tmp_path / "fast.onnx")
    assert (tmp_path / "fast.onnx").read_bytes() == model.read_bytes()
    (note,) = result.report.notes
    assert note.startswith("Kept the original: there is no GPU here")
    assert note.endswith("or say --target cpu if the model is to be fast on this CPU.")
    assert set(codes(result).values()) == {"not-measured"}


def test_a_model_without_sites_needs_no_device(tmp_path):
    path = tmp_path / "plain.onnx"
    onnx.save(conv_model(groups=1), path)
    result = run(None, path, tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx").read_bytes() == path.read_bytes()
    assert (result.report.sites, result.report.notes) == ((), ())


# --------------------------------------------------------------------------------- onnxruntime


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_by_default_nothing_is_measured_on_a_cpu(model, tmp_path):
    report = onnx_rewrite(model, tmp_path / "fast.onnx").report
    assert (tmp_path / "fast.onnx").read_bytes() == model.read_bytes()
    assert report.notes[0].startswith("Kept the original: there is no GPU here")
    with Database.open() as database:
        assert database.devices() == []


DYNAMIC = conv_model(channels=16, kernel=(3,), batch="N", spatial=("L",), pads=[1, 1])


@pytest.mark.parametrize("shapes", [{}, {"x": (3, 16, 100)}], ids=["any", "given"])
def test_the_cpu_is_a_target_where_the_user_says_so(shapes, tmp_path):
    """Whatever is faster here: what is written is faster and equivalent, or the original."""
    path = tmp_path / "m.onnx"
    onnx.save(DYNAMIC, path)
    report = onnx_rewrite(path, tmp_path / "o.onnx", target="cpu", shapes=shapes).report
    assert report.notes[0] == "Measured on CPU (CPUExecutionProvider)."
    (choice,) = report.sites[0].choices
    assert choice.workload.batch == shapes.get("x", (2,))[0]
    assert choice.workload.spec.spatial == shapes.get("x", (2, 16, 64))[2:]
    assert {option.form for option in choice.options} == {"keep", "blocks:8", "dense"}
    if report.changed:
        assert report.verdict == "equivalent"
        assert report.runtime.trials[-1].accepted
    else:
        assert (tmp_path / "o.onnx").read_bytes() == path.read_bytes()
    with Database.open() as database:
        (device,) = database.devices()
    assert device == OnnxBench("cpu").device
