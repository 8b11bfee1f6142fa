"""The command ``dwr-report`` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dwr_rewrite.document.reading import schema_text
from tests.reports import REPORTS


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(REPORTS["refuted"]().to_json())
    return path


@pytest.fixture
def dwr(monkeypatch, capfd):
    """Runs the command in this process; returns (exit code, standard output, standard error)."""
    from dwr_rewrite.cli.report import main

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dwr-report", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code or 0, *capfd.readouterr())

    return run


@pytest.mark.parametrize(
    ("name", "start"), [("r.html", "<!DOCTYPE html>"), ("r.HTML", "<!D"), ("r.md", "> [!CAUTION]")]
)
def test_the_ending_tells_the_form(dwr, source, tmp_path, name, start):
    (tmp_path / name).write_text("an older one")
    assert dwr(source, "-o", tmp_path / name) == (0, "", "")
    assert (tmp_path / name).read_text("utf-8").startswith(start)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", name}


def test_the_schema_is_printed(dwr):
    code, out, err = dwr("--schema")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(schema_text())


def test_the_report_is_never_overwritten(dwr, source, tmp_path):
    content = source.read_bytes()
    same = tmp_path / "same.md"
    same.symlink_to(source)
    twin = tmp_path / "twin.html"
    os.link(source, twin)
    for target in (same, twin):
        code, out, err = dwr(source, "-o", target)
        assert (code, out) == (2, "")
        assert "would overwrite" in err
    assert source.read_bytes() == content


REFUSED = {
    "no such report": ("nothing.json", "r.html", "nothing.json: no such file"),
    "a folder": (".", "r.html", "is a directory; give the .json file in it"),
    "not text": ("bytes.json", "r.html", "is not JSON: it is not UTF-8 text"),
    "not JSON": ("text.json", "r.html", "is not JSON"),
    "another schema": ("old.json", "r.html", "is a report of schema 1"),
    "no ending": ("report.json", "r", "must end in .html or .md"),
    "another ending": ("report.json", "r.pdf", "must end in .html or .md"),
    "no folder": ("report.json", "none/r.html", "does not exist"),
    "target is a folder": ("report.json", "folder.html", "is a directory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_line_and_exit_code_2(dwr, source, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("text.json").write_text("hello")
    Path("bytes.json").write_bytes(b"\xff\xfe\x00")
    Path("old.json").write_text('{"schema": 1}')
    Path("folder.html").mkdir()
    Path("r.html").write_text("as it was")
    given, target, message = REFUSED[name]
    code, out, err = dwr(given, "-o", target)
    assert (code, out) == (2, "")
    assert err.startswith("dwr-report: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert Path("r.html").read_text() == "as it was"


@pytest.mark.parametrize(
    "arguments", [(), ("report.json",), ("-o", "r.html"), ("a", "b", "-o", "c")]
)
def test_bad_usage_is_exit_code_2(dwr, arguments):
    code, out, err = dwr(*arguments)
    assert (code, out) == (2, "")
    assert "see dwr-report --help" in err


def test_the_same_report_gives_the_same_bytes_and_loads_no_framework(source, tmp_path):
    code = (
        "import sys; from dwr_rewrite.cli.report import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    pages: list[bytes] = []
    for seed in ("1", "2"):
        target = tmp_path / f"{seed}.html"
        done = subprocess.run(
            [sys.executable, "-c", code, str(source), "-o", str(target)],
            env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
        pages.append(target.read_bytes())
    assert pages[0] == pages[1]
