"""The child process of a job that is called: ``python -m dwr_rewrite.passes.onnx.jobs FOLDER``."""

from __future__ import annotations

from dwr_rewrite.passes.onnx.child import serve

if __name__ == "__main__":
    serve(lambda job: job())
