"""The table of families in docs/families.md is the measured one."""

from . import expected
from .layouts import read_json
from .table import MEASURED, table, written

REMEDY = "make it with `cd tests && python -m parity.table --write`"


def test_the_table_in_the_page_is_the_measured_one() -> None:
    assert written() == table(read_json(MEASURED)), REMEDY


def test_every_reference_is_measured_and_within_the_bound() -> None:
    measured = read_json(MEASURED)
    assert set(measured) == {name for name in expected.families() if name != "demo"}, REMEDY
    assert all(figures["float32"] < 1e-4 for figures in measured.values())
