"""Parquet files whose footer is damaged byte by byte: read or refused, and the process lives on."""

import random

import pytest

from slmjax.data.config import SourceConfig
from slmjax.data.sources import read_documents
from slmjax.errors import UserError

pyarrow = pytest.importorskip("pyarrow")


def test_a_footer_damaged_anywhere_is_read_or_refused(tmp_path):
    """pyarrow ends the process where it is asked for a column's metadata that make no sense."""
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["A river."] * 9, "n": list(range(9))}), path, compression="none")
    content = path.read_bytes()
    start, rng, refused = len(content) - 8 - int.from_bytes(content[-8:-4], "little"), random.Random(0), 0
    for at in range(start, len(content) - 8):
        damaged = bytearray(content)
        damaged[at] = (damaged[at] + rng.choice([1, 2, 16, 128])) % 256
        path.write_bytes(damaged)
        try:
            list(read_documents(SourceConfig(str(path))))
        except UserError:
            refused += 1
    assert 50 < refused < len(content) - 8 - start
