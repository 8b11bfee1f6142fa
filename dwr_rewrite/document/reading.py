"""A report read back from its file; whatever is shown of it is made from this."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from dwr_rewrite.errors import DwrError
from dwr_rewrite.report import SCHEMA

Document = dict[str, Any]
"""What :meth:`dwr_rewrite.report.Report.to_dict` gives and ``report.schema.json`` describes."""

QUOTED = 160
"""Characters of a violation that an error message quotes; it may hold a whole part of the file."""


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of a report."""
    return resources.files("dwr_rewrite").joinpath("report.schema.json").read_text("utf-8")


def read(path: Path) -> Document:
    """A report from its file.

    Raises:
        DwrError: there is no such file, it is not JSON, or it is not a report of this version.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise DwrError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DwrError(f"{path}: is a directory; give the .json file in it") from None
    except UnicodeDecodeError:
        raise DwrError(f"{path}: is not JSON: it is not UTF-8 text") from None
    except OSError as error:
        raise DwrError(f"{path}: cannot be read: {error.strerror}") from None
    return parse(text, str(path))


def parse(text: str, source: str) -> Document:
    """A report from the text of its file.

    Args:
        text: JSON.
        source: what to call it in messages.

    Raises:
        DwrError: it is not JSON, or not a report of this version; names the place in it.
    """
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DwrError(f"{source}: is not JSON: {error}") from None
    if not isinstance(found, dict) or "schema" not in found:
        raise DwrError(f"{source}: is not a report of dwr-rewrite: it has no field 'schema'")
    if found["schema"] != SCHEMA:
        raise DwrError(
            f"{source}: is a report of schema {str(found['schema'])[:QUOTED]}, and this version "
            f"reads schema {SCHEMA}; use the dwr-rewrite that wrote it, or repeat the check"
        )
    if damage := next(violations(found), None):
        raise DwrError(f"{source}: is not a valid report: {damage}")
    return found


def violations(document: Document) -> Iterator[str]:
    """What is wrong with a document, as ``$.path.to[0].field: what``; the most telling first."""
    worst = best_match(_validator().iter_errors(document))
    if worst is None:
        yield from _unequal_lengths(document["verification"] or {})
        yield from _unfounded(document)
        return
    text = worst.message
    yield f"{worst.json_path}: {text if len(text) <= QUOTED else f'{text[:QUOTED]} ...'}"


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema_text()))


def _unequal_lengths(check: Document) -> Iterator[str]:
    """The lists that belong together, which a schema cannot compare."""
    if check.get("picture"):
        counts = check["picture"]["histogram"]
        for model in ("reference", "candidate"):
            if len(counts[model]) != len(counts["edges"]) - 1:
                yield (
                    f"$.verification.picture.histogram.{model}: {len(counts[model])} counts "
                    f"between {len(counts['edges'])} edges"
                )
    if check.get("training"):
        curves = check["training"]
        for curve in ("reference", "candidate", "tolerance"):
            if len(curves[curve]) != len(curves["truth"]):
                yield (
                    f"$.verification.training.{curve}: {len(curves[curve])} steps, and "
                    f"{len(curves['truth'])} of the truth"
                )


def _unfounded(document: Document) -> Iterator[str]:
    """What is said to be taken and is not in the list that it was taken from."""
    for i, site in enumerate(document["sites"]):
        for j, choice in enumerate(site["choices"]):
            known = {o["form"] for o in choice["options"] if o["time"] or o["predicted"]}
            if choice["form"] not in {"keep", *known}:
                yield (
                    f"$.sites[{i}].choices[{j}].form: {choice['form'][:QUOTED]!r} is none of the "
                    f"options that have a time"
                )
    runtime = document["runtime"]
    if runtime and runtime["setting"] not in {"", *(s["name"] for s in runtime["settings"])}:
        yield f"$.runtime.setting: {runtime['setting'][:QUOTED]!r} is none of the settings"


def printable(value: Any) -> Any:
    r"""JSON in which characters that are not seen are written out, as in ``\u202e``.

    They may be in names: some turn the direction of what follows, some no file can hold. Whatever
    shows a document shows it so.
    """
    if isinstance(value, str):
        return "".join(_seen(character) for character in value)
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, list) else value


def _seen(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return character.encode("unicode_escape").decode() if hidden else character


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it has the number {constant}")
