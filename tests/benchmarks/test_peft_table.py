"""The table of methods and architectures is what trying them gives."""

from benchmarks.peft_table import FILE, table

from whet.paths import Paths


def test_the_table_is_up_to_date(cache):
    found = table(Paths(cache=str(cache)), trained=False)
    assert found == FILE.read_text(encoding="utf-8"), "make it anew: python -m benchmarks.peft_table"
