"""The report as one HTML page: it loads nothing, runs nothing and is made from the JSON alone."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dwr_rewrite.document import choices, digest, speed, wording
from dwr_rewrite.document.derivation import derivation
from dwr_rewrite.document.reading import Document, printable
from dwr_rewrite.planner import format_bytes
from dwr_rewrite.plots import outputs, times, training

FILTERS: dict[str, Any] = {
    "cosine": wording.cosine,
    "digits": wording.digits,
    "exact": wording.exact,
    "factor": wording.factor,
    "form": wording.form,
    "number": wording.number,
    "percent": wording.percent,
    "plural": wording.plural,
    "shape": wording.shape,
    "size": format_bytes,
    "speedup": wording.speedup,
    "times": wording.times,
    "tojson_text": json.dumps,  # jinja's tojson is for scripts
}


def render(document: Document) -> str:
    """A report as a page; the same bytes for the same document.

    Args:
        document: what :func:`dwr_rewrite.document.reading.read` or
            :meth:`dwr_rewrite.report.Report.to_dict` gives. Whatever text it holds is escaped.
    """
    document = printable(document)
    environment = Environment(
        loader=PackageLoader("dwr_rewrite"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("report.html.j2").render(
        report=document,
        heading=digest.heading(document),
        choices=choices,
        digest=digest,
        speed=speed,
        steps=derivation(document),
        times=list(times.plots(document)),
        plots=list(outputs.plots(document)),
        curves=list(training.plots(document)),
    )
