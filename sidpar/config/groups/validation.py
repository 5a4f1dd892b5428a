"""The checks that settings share: each refuses with the setting's name, its value and what to change. No torch."""

from collections.abc import Sequence
from typing import Any

from sidpar.errors import UsageError


def at_least(name: str, value: float | None, least: float) -> None:
    if value is None or not value >= least:
        raise UsageError(f"{name} must be at least {least}, got {value}")


def positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise UsageError(f"{name} must be a positive number, got {value}")


def fill_in(settings: Any, **values: Any) -> None:
    """Fill in settings that were left open, now that they are known to have an effect."""
    for name, value in values.items():
        if getattr(settings, name) is None:
            object.__setattr__(settings, name, value)


def without_effect(group: str, settings: Any, names: Sequence[str], reason: str) -> None:
    """Refuse settings that differ from their defaults although nothing would read them."""
    defaults = type(settings).__dataclass_fields__
    given = [
        f"{group}.{name}={getattr(settings, name)}"
        for name in names
        if getattr(settings, name) != defaults[name].default
    ]
    if given:
        raise UsageError(f"{', '.join(given)} would have no effect, because {reason}: remove it")
