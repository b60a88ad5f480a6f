"""Numbers for people."""

import pytest

from slmjax.quantities import format_bytes, format_count, format_duration


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (999.7, "1k"), (12_345, "12.3k"), (999_600, "1M"), (134_515_008, "135M"), (2e12, "2T")],
)
def test_counts_have_three_digits_and_a_suffix(number, text):
    assert format_count(number) == text


def test_bytes_and_durations_have_the_unit_that_leaves_a_small_number():
    assert [format_bytes(n) for n in (1023, 1024, 3 << 30, 5 << 40)] == ["1023 B", "1 KiB", "3 GiB", "5 TiB"]
    assert [format_duration(s) for s in (7, 187, 3787)] == ["0:07", "3:07", "1:03:07"]
