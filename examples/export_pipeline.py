"""An export pipeline: build, rewrite, check, and export to torch.export and to ONNX.

python examples/export_pipeline.py [FOLDER]
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch

import dwr_rewrite as dwr
from models import mobilenet_v1


def main(folder: Path) -> None:
    model = mobilenet_v1.build(width=0.25, size=64, classes=10)  # in eval mode
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    # In eval mode the diagonal weights are stored in ordinary convolutions.
    fast = dwr.fx_rewrite(model, policy="blocks:16")
    rewritten = [site for site in dwr.record(fast) if site.changed]
    print(f"rewrote {len(rewritten)} depthwise convolutions: {rewritten[-1].name} is now "
          f"{rewritten[-1].form}, {fast.get_submodule(rewritten[-1].name)}")  # fmt: skip

    report = dwr.verify(model, fast, (x,))
    print(f"{report.verdict}; the structure is {report.verification.proof.status}")
    if report.verdict != "equivalent":
        raise SystemExit("\n".join(report.verification.failures))

    program = torch.export.export(fast, (x,))
    torch.export.save(program, folder / "fast.pt2")
    logging.disable(logging.WARNING)  # the exporter's own, such as that torchvision is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            fast, (x,), folder / "fast.onnx", dynamo=True, external_data=False, verbose=False
        )
    for path in sorted(folder.glob("fast.*")):
        print(f"wrote {path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
