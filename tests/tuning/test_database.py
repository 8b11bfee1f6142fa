from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwr_rewrite.errors import DwrError
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.spec import DTYPES, ConvSpec
from dwr_rewrite.timing import Timing
from dwr_rewrite.tuning import Answer, Device, Question, database
from dwr_rewrite.tuning.database import PATH_VARIABLE, Database, default_path
from dwr_rewrite.tuning.schema import TABLES, transaction
from dwr_rewrite.workload import LAYOUTS, Workload
from tests.tuning.fakes import ABACUS, answer, question, with_facts, workload

# ------------------------------------------------------------------------------- what goes in

texts = st.text(max_size=20)
seconds = st.floats(1e-9, 1e9)


@st.composite
def workloads(draw) -> Workload:
    rank = draw(st.integers(1, 3))
    several = lambda low, high: st.tuples(*[st.integers(low, high)] * rank)  # noqa: E731
    spec = ConvSpec(
        draw(st.integers(1, 4096)), draw(several(1, 7)), draw(st.integers(1, 4)),
        draw(several(1, 3)), draw(several(1, 3)),
        tuple((pad, pad) for pad in draw(several(0, 3))), bias=draw(st.booleans()),
        dtype=draw(st.sampled_from(sorted(DTYPES))), spatial=draw(several(1, 512)),
    )  # fmt: skip
    direction = draw(st.sampled_from(["forward", "grad_input", "grad_weight"]))
    return Workload(
        spec, draw(st.integers(1, 256)), direction, draw(st.sampled_from(LAYOUTS)),
        tf32=spec.dtype == "float32" and draw(st.booleans()),
        stored=direction == "forward" and draw(st.booleans()),
    )  # fmt: skip


@st.composite
def answers(draw) -> Answer:
    rounds = draw(st.integers(1, 4))
    forms = draw(st.lists(texts, unique=True, max_size=4))
    timed = [KEEP, *(form for form in forms[::2] if form != KEEP)]
    timing = st.lists(seconds, min_size=2 * rounds, max_size=2 * rounds).map(tuple).map(Timing)
    failed = [form for form in forms[1::2] if form != KEEP]
    return Answer(
        draw(workloads()), {form: draw(timing) for form in timed},
        {form: draw(texts) for form in failed}, draw(st.dictionaries(texts, texts, max_size=3)),
    )  # fmt: skip


devices = st.builds(Device, texts, texts, st.dictionaries(texts, texts, max_size=3), st.booleans())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Database.open(tmp_path_factory.mktemp("shared") / "tuning.sqlite3") as opened:
        yield opened


@settings(deadline=None, max_examples=30)
@given(device=devices, said=answers())
def test_what_is_put_is_got(shared, device, said):
    shared.put(device, said)
    asked = Question(said.workload, (*said.timings, *said.failures))
    assert shared.get(device, asked) == said
    with Database.open(shared.path) as again:
        got = again.get(device, asked)
        assert got == said
        assert got is not None
        assert list(got.timings) == list(said.timings)  # in their order
        assert device in again.devices()


# ---------------------------------------------------------------------------------- the key

BASE = Workload(
    ConvSpec(64, (3, 3), padding=((1, 1), (1, 1)), spatial=(14, 14)), 1, stored=True, tf32=False
)
OTHERS = {
    "batch": 2, "layout": "channels_last", "tf32": True, "stored": False,
    "direction": "grad_input", "channels": 32, "kernel": (5, 5), "multiplier": 2, "stride": (2, 2),
    "dilation": (2, 2), "padding": ((0, 1), (1, 1)), "transposed": True, "output_padding": (0, 1),
    "bias": True, "dtype": "float16", "spatial": (14, 15),
}  # fmt: skip
"""Another value for every field."""


def neighbours(field: str) -> tuple[Workload, Workload]:
    """Two workloads that differ in this field alone."""
    if field == "direction":
        one = replace(BASE, stored=False)
    elif field == "output_padding":  # which only a transposed convolution has
        one = replace(BASE, spec=replace(BASE.spec, transposed=True))
    else:
        one = BASE
    if field in {f.name for f in dataclasses.fields(Workload)}:
        return one, replace(one, **{field: OTHERS[field]})
    return one, replace(one, spec=replace(one.spec, **{field: OTHERS[field]}))


def fields_without_effect(opened: Database) -> list[str]:
    """Fields whose change does not lead to another answer."""
    found = []
    for field in OTHERS:
        device = with_facts(test=field)
        one, other = (Question(workload, (KEEP,)) for workload in neighbours(field))
        opened.put(device, answer(one))
        if opened.get(device, other) is not None:
            found.append(field)
    return found


def test_every_field_of_a_workload_has_another_value():
    names = {f.name for cls in (Workload, ConvSpec) for f in dataclasses.fields(cls)}
    assert names - {"spec"} == set(OTHERS)


@pytest.fixture
def opened(tmp_path):
    with Database.open(tmp_path / "new" / "folder" / "tuning.sqlite3") as found:
        yield found


def test_every_field_of_a_workload_counts(opened):
    assert fields_without_effect(opened) == []
    assert opened.get(with_facts(test="bias"), Question(BASE, (KEEP,))) is not None


@pytest.mark.parametrize("forgotten", sorted(OTHERS))
def test_a_key_that_forgets_a_field_is_noticed(opened, monkeypatch, forgotten):
    whole = Workload.to_dict

    def to_dict(self: Workload):
        row = whole(self)
        row["spec"] = {k: v for k, v in row["spec"].items() if k != forgotten}
        return {k: v for k, v in row.items() if k != forgotten}

    real = database.rows.answer_row
    monkeypatch.setattr(
        database.rows, "answer_row", lambda a: {**real(a), "workload": whole(a.workload)}
    )
    monkeypatch.setattr(Workload, "to_dict", to_dict)
    assert fields_without_effect(opened) == [forgotten]


@pytest.mark.parametrize(
    "other",
    [
        with_facts(driver="1.3"),
        with_facts(tf32="on"),
        replace(ABACUS, facts={}),
        replace(ABACUS, engine="CUDAExecutionProvider"),
    ],
)
def test_every_fact_of_a_device_counts(opened, other):
    opened.put(ABACUS, answer(question()))
    assert opened.get(other, question()) is None
    assert opened.get(ABACUS, question()) == answer(question())


def test_the_order_of_the_facts_and_what_a_device_is_for_do_not_count(opened):
    opened.put(ABACUS, answer(question()))
    same = Device("for a person", "torch", dict(reversed(ABACUS.facts.items())), target=False)
    assert opened.get(same, question()) == answer(question())
    opened.put(same, answer(question(96)))
    assert opened.devices() == [same]


def test_another_version_of_the_program_asks_again(opened, monkeypatch):
    opened.put(ABACUS, answer(question()))
    for version in ("0.0.1", "99"):
        monkeypatch.setattr(database, "__version__", version)
        assert opened.get(ABACUS, question()) is None
    opened.put(ABACUS, answer(question()))
    opened.put(ABACUS, answer(question(96)))
    assert sorted((h.version, h.answers) for h in opened.holdings()) == [("0.1.0", 1), ("99", 2)]


# -------------------------------------------------------------------------------- the forms


def test_an_answer_is_cut_to_the_forms_that_are_asked(opened):
    said = replace(answer(question(forms=(KEEP, "dense", "blocks:8"))), failures={"blocks:16": "!"})
    opened.put(ABACUS, said)
    got = opened.get(ABACUS, question(forms=(KEEP, "blocks:16", "blocks:8")))
    assert got is not None
    assert (list(got.timings), list(got.failures)) == ([KEEP, "blocks:8"], ["blocks:16"])
    assert opened.get(ABACUS, question(forms=(KEEP, "blocks:32"))) is None


def test_a_newer_answer_replaces_an_older_one(opened):
    opened.put(ABACUS, answer(question(forms=(KEEP, "blocks:8"))))
    opened.put(ABACUS, answer(question()))
    assert opened.get(ABACUS, question()) == answer(question())
    assert opened.get(ABACUS, question(forms=(KEEP, "blocks:8"))) is None


@pytest.mark.parametrize(
    "bad", [Answer(workload(), {}), Answer(workload(), {"dense": Timing((1.0, 1.0))})]
)
def test_what_is_no_answer_is_not_stored(opened, bad):
    with pytest.raises(DwrError, match=r"an answer of Abacus 9 \(torch\) cannot be stored"):
        opened.put(ABACUS, bad)
    assert opened.devices() == []


def test_rates_are_kept_by_device(opened):
    opened.put_rates(ABACUS, {"copy": 1e12})
    opened.put_rates(ABACUS, {"copy": 2e12, "launch": 2e-6})
    assert opened.rates(ABACUS) == {"copy": 2e12, "launch": 2e-6}
    assert opened.rates(with_facts(driver="2")) is None
    assert opened.calibrated() == [ABACUS]
    assert opened.devices() == []  # it has answered nothing
    with pytest.raises(DwrError, match=r"what was measured on Abacus 9 .* rates launch:"):
        opened.put_rates(ABACUS, {"launch": float("nan")})


# --------------------------------------------------------------------------- several processes


def put_many(path, first: int) -> None:
    opened = Database.open(path)
    for channels in range(first, first + 15):
        opened.put(ABACUS, answer(question(channels)))
    os._exit(0)  # without closing it


def test_two_processes_put_at_once_and_vanish(tmp_path):
    path = tmp_path / "tuning.sqlite3"
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=put_many, args=(path, first)) for first in (1, 101)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    with Database.open(path) as opened:
        assert [held.answers for held in opened.holdings()] == [30]


def test_a_file_that_another_process_is_just_making_is_waited_for(tmp_path):
    path = tmp_path / "tuning.sqlite3"
    maker = sqlite3.connect(path, isolation_level=None)
    with ThreadPoolExecutor(1) as other:
        with transaction(maker):
            for statement in TABLES:
                maker.execute(statement)
            opening = other.submit(lambda: Database.open(path).close())
            time.sleep(0.2)  # it has looked at the file by now, and waits
            assert not opening.done()
        assert opening.result(timeout=20) is None
    maker.close()


# ------------------------------------------------------------------------------- bad files


def garbage(path) -> None:
    path.write_bytes(b"no database at all" * 100)


def foreign(path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE cookies (id)")
    connection.close()


def newer(path) -> None:
    Database.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (garbage, "file is not a database"),
        (foreign, "it is the database of another program"),
        (newer, "a newer version of dwr-rewrite wrote it"),
        (lambda path: path.mkdir(), "unable to open database file"),
        (lambda path: path.symlink_to(path.parent / "not" / "there"), "unable to open"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_left_alone(tmp_path, make, reason):
    path = tmp_path / "tuning.sqlite3"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(DwrError, match=reason) as caught:
        Database.open(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert PATH_VARIABLE in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DwrError, match=r"cannot be used: .*DWR_TUNING_DATABASE$"):
        Database.open(tmp_path / "file" / "tuning.sqlite3")


def test_an_empty_file_becomes_a_database(tmp_path):
    (tmp_path / "new").touch()
    with Database.open(tmp_path / "new") as opened:
        assert opened.devices() == []


@pytest.mark.parametrize("document", ["{", "[]", '{"workload": 1}', "null"])
def test_a_row_that_was_tampered_with_is_a_sentence(opened, document):
    opened.put(ABACUS, answer(question()))
    with sqlite3.connect(opened.path) as connection:
        connection.execute("UPDATE answers SET document = ?", (document,))
    connection.close()
    with pytest.raises(DwrError, match="the tuning results cannot be used"):
        opened.get(ABACUS, question())


def test_a_file_that_is_damaged_in_the_middle_is_a_sentence(tmp_path):
    path = tmp_path / "tuning.sqlite3"
    with Database.open(path) as opened:
        for channels in range(1, 40):
            opened.put(ABACUS, answer(question(channels)))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with (
        Database.open(path) as opened,
        pytest.raises(DwrError, match=r"cannot be used: .*malformed"),
    ):
        opened.get(ABACUS, question(5))
    assert path.read_bytes() == content


def test_the_file_lies_in_the_cache_folder_unless_another_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (default_path().parent.name, default_path().name) == ("dwr-rewrite", "tuning.sqlite3")
    monkeypatch.setenv(PATH_VARIABLE, str(tmp_path / "team.sqlite3"))
    assert default_path() == tmp_path / "team.sqlite3"
    with Database.open() as opened:
        assert opened.path == tmp_path / "team.sqlite3"
