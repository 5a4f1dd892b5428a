"""Quantities with units, such as `80GB`, `5us` and `300GB/s`, to bytes and seconds and back. No torch."""

import math
import re
from collections.abc import Mapping

from sidpar.errors import UsageError

BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
BYTES |= {f"{letter}iB": 1024.0**power for power, letter in enumerate("KMGT", start=1)}
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
BYTES_PER_SECOND = {f"{unit}/s": size for unit, size in BYTES.items()}


def read_quantity(name: str, text: str, units: Mapping[str, float], *, zero: bool = False) -> float:
    """The number that a string such as `80GB` stands for, in bytes, seconds or bytes per second. Raises UsageError for
    anything but a positive number (or 0, if `zero`) and one of the units."""
    match = re.fullmatch(r"\s*([-+.\deE]*\d\.?)\s*([a-zA-Z/]+)\s*", text)
    try:
        if match is None:
            raise ValueError(text)
        value = float(match[1]) * units[match[2]]
    except (KeyError, ValueError) as error:
        example = f"5{next(iter(units))}"
        raise UsageError(
            f"{name} must be a number and one of the units {', '.join(units)}, such as {example}, got {text!r}"
        ) from error
    if not (0 < value < math.inf or (zero and value == 0)):
        raise UsageError(f"{name} must be {'at least 0' if zero else 'positive'}, got {text}")
    return value


def unit_of(size: float) -> tuple[int, str]:
    """The unit in which a size in bytes is shown, and its number of bytes."""
    power = 0 if abs(size) < 1024 else min(3, int(math.log2(abs(size)) // 10))
    return 1024**power, ("B", "KiB", "MiB", "GiB")[power]


def human(size: float | None) -> str:
    """A size in bytes with a unit for people, in steps of 1024."""
    if size is None:
        return "-"
    divisor, unit = unit_of(size)
    return f"{size:.0f} B" if divisor == 1 else f"{size / divisor:.2f} {unit}"


def human_seconds(seconds: float) -> str:
    """A time with a unit for people, to three digits."""
    unit = next((unit for unit in ("s", "ms", "us") if seconds >= 0.9995 * SECONDS[unit]), "us")
    value = seconds / SECONDS[unit]
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def human_duration(seconds: float) -> str:
    """As people say how long something takes: `850 ms`, `42 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`."""
    whole = round(seconds)
    if whole < 60:
        return human_seconds(seconds) if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = whole // 60
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes < 1440
        else f"{minutes // 1440} d {minutes // 60 % 24:02d} h"
    )
