from __future__ import annotations

from dataclasses import replace

import pytest

from dwr_rewrite.cost import load_model
from dwr_rewrite.errors import DwrError
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.tuning.models import model_of
from tests.tuning.fakes import ABACUS

RATES = {
    "copy": 2e11, "launch": 1e-6, "l2_bytes": 3.2e7, "multiprocessors": 8.0, "fma.float32": 5e12,
}  # fmt: skip


@pytest.fixture
def database(tmp_path):
    with Database.open(tmp_path / "tuning.sqlite3") as opened:
        opened.put_rates(ABACUS, RATES)
        opened.put_rates(replace(ABACUS, name="NVIDIA H200", facts={}), RATES)
        yield opened


def test_a_calibrated_device_is_a_target(database):
    target = model_of("abacus 9", database).target
    assert (target.name, target.bandwidth, target.calibrated) == ("Abacus 9", 2e11, True)


def test_a_known_target_keeps_its_data_sheet(database):
    assert model_of("H200", database) == load_model("H200")
    assert model_of("NVIDIA H200", database) == load_model("H200")


def test_an_unknown_name_lists_what_there_is(database, tmp_path):
    with pytest.raises(DwrError, match=r"'Abacus 10'; known: .*H200.*Calibrated: Abacus 9, NVIDIA"):
        model_of("Abacus 10", database)
    with Database.open(tmp_path / "empty") as empty, pytest.raises(DwrError, match=r": none$"):
        model_of("Abacus 9", empty)
