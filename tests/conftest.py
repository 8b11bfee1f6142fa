from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from filelock import FileLock

# Kernels run on the CPU then. Triton reads it once, as it is imported, and a test may change it.
os.environ["TRITON_INTERPRET"] = "1"
with suppress(ImportError):
    import triton  # noqa: F401

if TYPE_CHECKING:
    from models.export import Exporter


@pytest.fixture(autouse=True)
def tuning_database(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Every test has a database of tuning results of its own, which is empty."""
    path = tmp_path_factory.mktemp("tuning") / "tuning.sqlite3"
    monkeypatch.setenv("DWR_TUNING_DATABASE", str(path))
    return path


@pytest.fixture(autouse=True, scope="module")
def torch_flags() -> Iterator[None]:
    """torch.testing._internal, which one test imports, forbids its process to set torch's flags."""
    backends = sys.modules.get("torch.backends")
    if backends is None:
        yield
        return
    with getattr(backends, "__allow_nonbracketed_mutation")():
        yield


class Exported(Protocol):
    def __call__(self, name: str, exporter: Exporter = "dynamo", *, fold: bool = True) -> Path: ...


@pytest.fixture(scope="session")
def session_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary directory that all xdist workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def exported(session_dir: Path) -> Exported:
    """`exported(name, exporter)`: path of that network's ONNX file, exported once per run.

    The file is shared between tests: read it, never write it.
    """
    from models.export import export
    from models.zoo import ZOO

    def get(name: str, exporter: Exporter = "dynamo", *, fold: bool = True) -> Path:
        path = session_dir / f"{name}.{exporter}{'' if fold else '.unfolded'}.onnx"
        with FileLock(f"{path}.lock"):
            return path if path.exists() else export(ZOO[name], path, exporter, fold=fold)

    return cache(get)
