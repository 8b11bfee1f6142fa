"""The report's JSON: its schema describes it, and what does not fit is refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dwr_rewrite.document.reading import Document, parse, schema_text
from dwr_rewrite.equivalence import comparison, evidence, statistics, tolerance, verification
from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.planner import Option
from dwr_rewrite.report import SiteReport
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.timing import Energy, FreeSetting, Measurement, Runtime, Speedup, Time, TrialResult
from tests.reports import REPORTS, VERDICTS, document

SCHEMA = json.loads(schema_text())


def walk(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property that the schema names, with its description of it."""
    if isinstance(schema, dict):
        for name, child in schema.get("properties", {}).items():
            if "const" not in child or "description" in child:  # no condition
                yield name, child
        for key, child in schema.items():
            if key not in ("allOf", "required", "enum"):
                yield from walk(child)
    elif isinstance(schema, list):
        for child in schema:
            yield from walk(child)


def test_the_schema_is_a_schema_that_describes_every_field():
    Draft202012Validator.check_schema(SCHEMA)
    found = list(walk(SCHEMA))
    assert len(found) > 100
    assert [name for name, child in found if not child.get("description")] == []


CLASSES = {
    "spec": (ConvSpec, ()),
    "rejection": (Rejection, ()),
    "site": (SiteReport, ("changed",)),
    "errors": (statistics.Errors, ()),
    "worst": (statistics.Worst, ()),
    "agreement": (statistics.Agreement, ()),
    "histogram": (statistics.Histogram, ()),
    "picture": (statistics.Picture, ()),
    "comparison": (comparison.Comparison, ("measured", "passed")),
    "case": (verification.Case, ()),
    "ratio": (verification.Ratio, ("value", "passed")),
    "rounding": (tolerance.Rounding, ()),
    "verification": (verification.Verification, ("verdict", "ratios", "rule")),
    "tap": (evidence.Tap, ()),
    "probe": (evidence.Probe, ()),
    "reach": (evidence.Reach, ()),
    "lemma": (evidence.Lemma, ()),
    "proof": (evidence.Proof, ("status",)),
    "culprits": (evidence.Culprits, ()),
    "gradient": (evidence.Gradient, ("passed",)),
    "training": (evidence.Training, ("passed",)),
    "option": (Option, ()),
    "time": (Time, ()),
    "measurement": (Measurement, ()),
    "speedup": (Speedup, ()),
    "free_setting": (FreeSetting, ()),
    "trial": (TrialResult, ()),
    "energy": (Energy, ()),
    "runtime": (Runtime, ()),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_schema_names_the_fields_of_the_code(name):
    cls, derived = CLASSES[name]
    assert set(SCHEMA["$defs"][name]["properties"]) == {*(f.name for f in fields(cls)), *derived}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_valid_and_has_its_verdict(name):
    report = REPORTS[name]()
    found = document(name)
    assert found["verdict"] == report.verdict == VERDICTS[name]
    assert found == report.to_dict()


FREE = {"environment", "versions", "shapes", "forms", "facts"}  # maps with keys of their own


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """One path to every field: of a list, the first element's."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield (*path, key)
            if key not in FREE and (*path, key) != ("options",):
                yield from places(child, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.fixture(scope="module")
def full():
    """A document with all parts, short enough to be validated a thousand times."""
    found = document("refuted") | {"runtime": document("faster")["runtime"]}
    (choice, *_) = document("faster")["sites"][4]["choices"]
    found["sites"][0]["choices"] = [choice | {"form": choice["options"][0]["form"]}]
    check = found["verification"]
    check["training"] = document("trained")["verification"]["training"]
    for curve in ("truth", "reference", "candidate", "tolerance"):
        del check["training"][curve][2:]
    for counts, kept in (("edges", 3), ("reference", 2), ("candidate", 2)):
        del check["picture"]["histogram"][counts][kept:]
    return shortened(found)


def shortened(value: Any) -> Any:
    """The same with one thing in each list of things."""
    if isinstance(value, dict):
        return {key: shortened(child) for key, child in value.items()}
    if isinstance(value, list):
        things = bool(value) and isinstance(value[0], dict | list)
        return [shortened(child) for child in (value[:1] if things else value)]
    return value


def test_a_document_without_a_field_or_with_another_type_there_is_refused(full):
    """Every field is needed, and an object with a field of no meaning fits nowhere."""
    parse(json.dumps(full), "full")
    paths = list(places(full))
    assert len(paths) > 150
    accepted: list[str] = []
    for path in paths:
        for damage in ("missing", "another type"):
            damaged = copy.deepcopy(full)
            holder = at(damaged, path[:-1])
            if damage == "missing":
                del holder[path[-1]]
            else:
                holder[path[-1]] = {"no such field": [None]}
            if path == ("options",) and damage == "another type":
                continue  # it holds whatever was asked
            try:
                parse(json.dumps(damaged), "damaged")
            except DwrError:
                continue
            accepted.append(f"{path}: {damage}")
    assert accepted == []


def put(path: str, value: Any):
    """A damage: sets a field, given by a path as in ``a.0.b``."""

    def damage(found: Document) -> None:
        *way, last = (int(key) if key.isdecimal() else key for key in path.split("."))
        at(found, tuple(way))[last] = value

    return damage


DAMAGES = {
    "verification.cases.0.engine": (7, "$.verification.cases[0].engine: 7 is not of type"),
    "verification.cases.0.comparisons.0.tolerance": (
        "infinite", "$.verification.cases[0].comparisons[0].tolerance: 'infinite'"),
    "verification.cases.0.comparisons.0.agreement.top1": (1.5, "agreement.top1: 1.5 is greater"),
    "verification.taps.0.depth": (-1, "$.verification.taps[0].depth: -1 is less"),
    "verification.probes.0.reach.0.value": ("inf", "$.verification.probes[0].reach[0].value"),
    "verification.proof.lemmas.0.status": ("fine", "$.verification.proof.lemmas[0].status"),
    "verification.picture.histogram.reference": ([1], "histogram.reference: 1 counts between"),
    "verification.training.candidate": ([1.0], "$.verification.training.candidate: 1 steps"),
    "verification.surprise": (1, "$.verification: Additional properties are not allowed"),
    "sites.0.spec.kernel": ([], "$.sites[0].spec.kernel"),
    "sites.0.reason": ("why not", "$.sites[0].reason: 'why not'"),
    "sites.0.choices.0.direction": ("backward", "choices[0].direction: 'backward' is not one of"),
    "sites.0.choices.0.options.0.predicted": (0, "$.sites[0].choices[0].options[0].predicted: 0"),
    "sites.0.choices.0.options.0.time.low": (0.0, "options[0].time.low: 0.0 is less than or equal"),
    "sites.0.choices.0.form": (
        "dense", "$.sites[0].choices[0].form: 'dense' is none of the options that have a time"),
    "runtime.setting": ("cudnn", "$.runtime.setting: 'cudnn' is none of the settings"),
    "runtime.settings.0.speedup.median": (-1, "$.runtime.settings[0].speedup.median: -1 is less"),
    "runtime.trials.0.accepted": ("yes", "$.runtime.trials[0].accepted: 'yes' is not of type"),
    "runtime.energy.reference": (None, "$.runtime.energy.reference: None is not of type"),
    "runtime.facts.driver": (570, "$.runtime.facts.driver: 570 is not of type 'string'"),
    "runtime.measurements.0.unit": ("s", "$.runtime.measurements[0].unit: 's' is not one of"),
    "candidate.name": (3, "$.candidate.name: 3 is not of type"),
    "verdict": ("equivalent", "$.verdict: 'not equivalent' was expected"),
    "failures": ([], "$.failures: [] should be non-empty"),
    "verification.verdict": ("equivalent", "$.verdict: 'equivalent' was expected"),
    "schema": (2, "is a report of schema 2, and this version reads schema 3"),
    "notes": ("x" * 10_000, "$.notes: 'xxx"),
}  # fmt: skip


@pytest.mark.parametrize("path", DAMAGES)
def test_a_damaged_document_is_refused_by_name(full, path):
    value, message = DAMAGES[path]
    damaged = copy.deepcopy(full)
    put(path, value)(damaged)
    with pytest.raises(DwrError) as refused:
        parse(json.dumps(damaged), "report.json")
    assert message in str(refused.value)
    assert str(refused.value).startswith("report.json: ")
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("verdict", ["equivalent", "not equivalent"])
def test_what_was_not_checked_is_called_nothing_else(verdict):
    found = REPORTS["unchecked"]().to_dict()
    found["verdict"] = verdict
    with pytest.raises(DwrError, match=r"\$"):
        parse(json.dumps(found), "report.json")


NO_JSON = {
    "empty": "",
    "text": "verdict: equivalent",
    "cut short": '{"schema": 3, "verdict"',
    "NaN": '{"schema": NaN}',
    "Infinity": '{"schema": -Infinity}',
    "deep": "[" * 100_000,
    "a long number": f'{{"schema": {"1" * 5000}}}',
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_not_json_is_refused(name):
    with pytest.raises(DwrError, match=r"^report\.json: is not JSON: "):
        parse(NO_JSON[name], "report.json")


@pytest.mark.parametrize("text", ["[]", "null", "3", '"schema"', "{}"])
def test_json_that_is_no_report_is_refused(text):
    with pytest.raises(DwrError, match="is not a report of dwr-rewrite"):
        parse(text, "report.json")
