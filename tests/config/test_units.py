"""Quantities in and out."""

import pytest

from sidpar import UsageError
from sidpar.config.units import BYTES, BYTES_PER_SECOND, SECONDS, human, human_seconds, read_quantity


def test_units_are_read() -> None:
    assert read_quantity("--device-memory", "80GB", BYTES) == 80e9
    assert read_quantity("--device-memory", " 1.5 GiB ", BYTES) == 1.5 * 2**30
    assert read_quantity("--latency", "5us", SECONDS) == pytest.approx(5e-6)
    assert read_quantity("--latency", "5e-6s", SECONDS) == 5e-6
    assert read_quantity("--latency", "0s", SECONDS, zero=True) == 0
    assert read_quantity("--bandwidth", "300GB/s", BYTES_PER_SECOND) == 300e9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("80", "must be a number and one of the units B, kB, MB"),
        ("80 furlongs", "such as 5B, got '80 furlongs'"),
        ("GB", "must be a number and one of the units"),
        ("1.2.3GB", "must be a number and one of the units"),
        ("-1GB", "--device-memory must be positive, got -1GB"),
        ("0GB", "--device-memory must be positive, got 0GB"),
        ("1e999GB", "--device-memory must be positive, got 1e999GB"),
    ],
)
def test_messages(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_quantity("--device-memory", text, BYTES)


def test_zero_is_allowed_where_it_makes_sense() -> None:
    with pytest.raises(UsageError, match="--latency must be at least 0, got -1us"):
        read_quantity("--latency", "-1us", SECONDS, zero=True)


def test_sizes_and_times_in_words() -> None:
    assert [human(size) for size in (None, 0, 1023, 1536, 5 * 2**30, 5 * 2**40)] == [
        *("-", "0 B", "1023 B", "1.50 KiB", "5.00 GiB", "5120.00 GiB")
    ]
    assert [human_seconds(seconds) for seconds in (1234, 12.345, 0.9996, 0.5, 0.0123, 4.56e-6, 0)] == [
        *("1234 s", "12.3 s", "1 s", "500 ms", "12.3 ms", "4.56 us", "0 us")
    ]
