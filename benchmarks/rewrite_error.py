"""How far a rewrite moves real networks, next to the error that they have by themselves.

`python -m benchmarks.rewrite_error [MODEL.onnx ...]` rewrites the networks of models/ and the
given files under every policy, prints one row for each and writes all comparisons as JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import _measure
from dwr_rewrite import __version__, onnx_rewrite
from dwr_rewrite.report import Report
from models.export import export
from models.zoo import EXPORTED, ZOO

POLICIES = ("blocks:32", "dense")
LIBRARIES = ("numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "torch", "transformers")


def worst_ratio(report: Report, engine: str) -> tuple[float, float, float]:
    """Errors of reference and candidate, and the tolerance, where their ratio is largest."""
    assert report.verification is not None
    found = [
        (c.reference.largest, c.candidate.largest, c.tolerance)
        for case, c in report.verification.compared
        if case.engine == engine and c.reference and c.candidate
    ]
    return max(found, key=lambda errors: errors[1] / max(errors[0], 1e-300))


def study(path: Path, policy: str) -> Report:
    return onnx_rewrite(path, policy=policy, freeze_weights=True, max_growth=4 << 30).report


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rewrite_error", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("models", nargs="*", type=Path, help="further ONNX files")
    parser.add_argument("--only", choices=EXPORTED, action="append", help="these of models/")
    options = parser.parse_args()
    console, facts, results = Console(), _measure.host(), dict[str, Any]()
    table = Table("network", "policy", "sites", "original", "rewritten", "ratio", "allowed",
                  "largest difference in float64", "verdict")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        networks = {n: Path(folder) / f"{n}.onnx" for n in options.only or EXPORTED}
        for name, path in networks.items():
            export(ZOO[name], path)
        for name, path in (networks | {path.stem: path for path in options.models}).items():
            for policy in POLICIES:
                report = study(path, policy)
                original, rewritten, allowed = worst_ratio(report, "onnxruntime CPU")
                _, algebra, _ = worst_ratio(report, "float64")
                assert report.verification is not None
                table.add_row(
                    name, policy, str(len(report.changed)), f"{original:.2g}", f"{rewritten:.2g}",
                    f"{rewritten / original:.2f}", f"{allowed:.2g}", f"{algebra:.2g}",
                    report.verification.verdict,
                )  # fmt: skip
                results[f"{name} {policy}"] = report.to_dict()["verification"]
    console.print(table)
    header = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": facts,
        "versions": {"dwr-rewrite": __version__, **_measure.versions(*LIBRARIES)},
    }
    written = _measure.write("rewrite_error", facts, header | {"verifications": results})
    console.print(f"written: {written}")


if __name__ == "__main__":
    main()
