"""What moves between machines; the file may come from anybody."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwr_rewrite.errors import DwrError
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.tuning import rows, travel
from dwr_rewrite.tuning.database import Database
from tests.tuning.fakes import ABACUS, answer, question, with_facts

OTHER = with_facts(driver="9")


@pytest.fixture
def opened(tmp_path):
    with Database.open(tmp_path / "tuning.sqlite3") as found:
        yield found


@pytest.fixture
def team(tmp_path):
    with Database.open(tmp_path / "team.sqlite3") as found:
        yield found


def test_everything_travels(opened, team, tmp_path):
    failed = replace(answer(question(128)), timings={}, failures={KEEP: "out of memory"})
    opened.put(ABACUS, answer(question(forms=("keep", "dense", "blocks:8"))))
    opened.put(OTHER, replace(answer(question(96)), state={"SM clock": "1980 MHz"}))
    opened.put(OTHER, failed)
    opened.put_rates(OTHER, {"copy": 2e12})
    opened.export(tmp_path / "results.jsonl")
    assert team.merge(tmp_path / "results.jsonl") == 4
    assert team.holdings() == opened.holdings()
    for device, channels in ((ABACUS, 64), (OTHER, 96), (OTHER, 128)):
        assert team.get(device, question(channels)) == opened.get(device, question(channels))
    assert team.get(OTHER, question(128)) == failed
    assert team.rates(OTHER) == {"copy": 2e12}
    assert team.merge(tmp_path / "results.jsonl") == 0  # a second time nothing is new
    team.export(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "results.jsonl").read_text()


@pytest.mark.parametrize("mine_is_newer", [True, False])
def test_the_newer_answer_stays(opened, team, tmp_path, mine_is_newer):
    mine, theirs = (answer(question(), lambda form, s=s: s) for s in (1.0, 2.0))
    puts = [(opened, mine, 1.0), (team, theirs, 2.0)]
    for database, said, rate in puts if not mine_is_newer else reversed(puts):
        database.put(ABACUS, said)
        database.put_rates(ABACUS, {"copy": rate})
    opened.export(tmp_path / "mine.jsonl")
    assert team.merge(tmp_path / "mine.jsonl") == (2 if mine_is_newer else 0)
    assert team.get(ABACUS, question()) == (mine if mine_is_newer else theirs)
    assert team.rates(ABACUS) == {"copy": 1.0 if mine_is_newer else 2.0}


def test_an_export_replaces_an_older_one_and_nothing_else(opened, tmp_path):
    path = tmp_path / "results.jsonl"
    opened.export(path)
    opened.put(ABACUS, answer(question()))
    opened.export(path)
    assert len(path.read_text().splitlines()) == 2
    for content in ("", "a letter", '{"format": "another"}', "[" * 100):
        path.write_text(content)
        with pytest.raises(
            DwrError, match=r"is there already, and it is no export .* another file"
        ):
            opened.export(path)
        assert path.read_text() == content
    before = opened.path.read_bytes()
    with pytest.raises(DwrError, match="is there already"):
        opened.export(opened.path)
    assert opened.path.read_bytes() == before


def test_an_export_that_fails_leaves_nothing(opened, tmp_path):
    def items():
        yield travel.Item(ABACUS, {"copy": 1.0}, rows.stamp("1"))
        raise OSError(28, "No space left on device")

    with pytest.raises(DwrError, match="out: cannot be written: No space left on device"):
        travel.write(tmp_path / "out", items())
    for path in (tmp_path / "missing" / "out", tmp_path):
        with pytest.raises(DwrError, match="cannot be written: "):
            opened.export(path)
    assert list(tmp_path.iterdir()) == [opened.path]


# ------------------------------------------------------------------------------- hostile files

GOOD = {
    "device": rows.device_row(ABACUS),
    "answer": rows.answer_row(answer(question())),
    "stamp": {"date": "2026-01-02T03:04:05+01:00", "version": "0.1.0"},
}
RATES = {"device": GOOD["device"], "rates": {"copy": 1e12}, "stamp": GOOD["stamp"]}


def at(path: str, value: object, row: object = GOOD) -> dict:
    """The row with another value at this place; a place is taken out with `...`."""
    changed = json.loads(json.dumps(row))
    *parents, last = path.split(".")
    target = changed
    for name in parents:
        target = target[name]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return changed


def file_of(path, *lines: object):
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join([json.dumps(travel.HEADER), *texts]) + "\n", "utf-8")
    return path


HUGE = 10**400
DEEP = '{"device": ' + "[" * 100_000 + "]" * 100_000 + "}"
TIMES = [1e-3] * 48


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "device, stamp, and one of answer, rates expected"),
        ("null", "device, stamp, and one of"),
        (DEEP, "recursion"),
        ('{"device": ' + "9" * 5000 + "}", "integer string conversion"),
        (at("answer", ...), "device, stamp, and one of"),
        (at("rates", {"copy": 1.0}), "device, stamp, and one of"),
        (at("device", "Abacus"), "values by name expected, found str"),
        (at("device.target", 1), "target: true or false expected"),
        (at("device.name", ["x"]), "name: a text expected"),
        (at("device.facts", ...), "a device has name, engine, facts, target; found"),
        (at("device.facts.driver", 5), "facts, driver: a text expected"),
        (at("answer.more", 1), "an answer has workload, timings"),
        (at("answer.workload.batch", 0), "batch 0: at least 1 expected"),
        (at("answer.workload.batch", 1.5), "whole numbers"),
        (at("answer.workload.batch", "many"), "the geometry of a workload"),
        (at("answer.workload.batch", None), "whole numbers"),
        (at("answer.workload.spec", ...), "a workload has spec"),
        (at("answer.workload.spec", []), "a workload has spec"),
        (at("answer.workload.spec.kernel", [3, [3]]), "the geometry of a workload"),
        (at("answer.workload.spec.kernel", [0, 3]), "must be at least 1"),
        (at("answer.workload.spec.dtype", "int8"), "dtype 'int8'"),
        (at("answer.workload.spec.dtype", {}), "the geometry|dtype"),
        (at("answer.workload.spec.colour", "red"), "the geometry of a workload"),
        (at("answer.workload.spec.spatial", [14, None]), "whole numbers"),
        (at("answer.timings.keep", []), "keep: a list of 1 to 65536 samples"),
        (at("answer.timings.keep", [1e-3] * 2), "found 2 and 48"),
        (at("answer.timings.keep", "soon"), "keep: a list of 1 to 65536 samples expected"),
        (at("answer.timings.keep", [1e-3] * 70_000), "keep: a list of 1 to 65536"),
        (at("answer.timings.dense", ["1"] * 48), "dense: samples of more than 0 s"),
        (at("answer.timings.dense", [True] * 48), "dense: samples of more than 0 s"),
        (at("answer.timings.dense", [float("nan"), *TIMES[1:]]), "dense: samples of more"),
        (at("answer.timings.dense", [float("inf"), *TIMES[1:]]), "dense: samples of more"),
        (at("answer.timings.dense", [-1e-3, *TIMES[1:]]), "dense: samples of more"),
        (at("answer.timings.dense", [0, *TIMES[1:]]), "dense: samples of more"),
        (at("answer.timings.dense", [HUGE, *TIMES[1:]]), "dense: samples of more"),
        (at("answer.timings.keep", ...), "nothing to compare the others to"),
        (at("answer.timings", {}), "none has either"),
        (at("answer.failures", {"dense": "no"}), "dense has both"),
        (at("answer.failures", {"blocks:8": 1}), "failures, blocks:8: a text expected"),
        (at("answer.state", [1]), "values by name expected, found list"),
        (at("stamp.date", "yesterday"), "Invalid isoformat"),
        (at("stamp.date", "2026-01-02"), "a date with a time zone"),
        (at("stamp.date", 5), "date: a text expected"),
        (at("stamp.version", "\x1b[2J"), "a printable version expected"),
        (at("rates", {}, RATES), "positive finite numbers by name expected"),
        (at("rates.copy", -1, RATES), "rates copy: positive finite"),
        (at("rates.copy", HUGE, RATES), "rates copy: positive finite"),
    ],
)
def test_one_bad_row_and_nothing_is_added(opened, tmp_path, line, reason):
    path = file_of(tmp_path / "hostile", GOOD, line, GOOD)
    with pytest.raises(DwrError, match=reason) as caught:
        opened.merge(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "nothing was imported" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert opened.holdings() == opened.calibrated() == []
    opened.put(ABACUS, answer(question()))  # it goes on


def test_the_good_rows_are_good(opened, tmp_path):
    assert opened.merge(file_of(tmp_path / "good", GOOD, RATES)) == 2
    assert opened.get(ABACUS, question()) == answer(question())
    assert opened.holdings()[0].newest == "2026-01-02T02:04:05.000000+00:00"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no export of tuning results"),
        (b"\x89PNG\r\n\x1a\n", "codec can't decode"),
        (b"SQLite format 3\x00", "it is no export"),
        (b'{"format": "dwr-rewrite tuning", "schema": 2}\n', "a newer version of dwr-rewrite"),
    ],
)
def test_another_kind_of_file_is_refused(opened, tmp_path, content, reason):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(DwrError, match=reason):
        opened.merge(tmp_path / "other")


def test_a_file_that_cannot_be_read_is_a_sentence(opened, tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(DwrError, match="cannot be read: "):
            opened.merge(path)


def test_a_line_without_end_is_not_read_whole(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(travel, "LONGEST", 100)
    path = file_of(tmp_path / "long", GOOD)
    with pytest.raises(DwrError, match="lines of fewer than 100 characters"):
        opened.merge(path)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    with Database.open(folder / "tuning.sqlite3") as found:
        yield found, folder / "hostile"


PLACES = [
    "device", "device.name", "device.facts", "answer", "answer.workload", "answer.workload.spec",
    *(f"answer.workload.{name}" for name in GOOD["answer"]["workload"]),
    *(f"answer.workload.spec.{name}" for name in GOOD["answer"]["workload"]["spec"]),
    "answer.timings", "answer.timings.keep", "answer.failures", "answer.state", "stamp",
    "stamp.date", "stamp.version",
]  # fmt: skip
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=100)
@given(place=st.sampled_from(PLACES), junk=JUNK)
def test_whatever_a_row_holds_it_is_taken_or_refused(target, place, junk):
    opened, path = target
    file_of(path, at(place, junk))
    try:
        opened.merge(path)
    except DwrError as error:
        assert "line 2: " in str(error)  # noqa: PT017
    opened.holdings()
    opened.export(path.with_name("out"))
    opened.merge(path.with_name("out"))  # what was taken can travel on
