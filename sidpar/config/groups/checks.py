"""The checks that settings share: each refuses with the setting's name, its value and what to change. No torch."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from sidpar.errors import UsageError

Offered = TypeVar("Offered")


def at_least(name: str, value: float | None, least: float) -> None:
    if value is None or not value >= least:
        raise UsageError(f"{name} must be at least {least}, got {value}")


def positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise UsageError(f"{name} must be a positive number, got {value}")


def fill_in(settings: Any, **values: Any) -> None:
    """Fill in what was left open of settings that are being made: only by their own `__post_init__`."""
    for name, value in filled(settings, **values).items():
        object.__setattr__(settings, name, value)


def filled(settings: Any, **values: Any) -> dict[str, Any]:
    """Of these values, those that `settings` leave open: for `dataclasses.replace`."""
    return {name: value for name, value in values.items() if getattr(settings, name) is None}


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


def known(name: str, value: str, offers: Mapping[str, Offered]) -> Offered:
    """What a registry offers under the name that a setting has."""
    if value not in offers:
        raise UsageError(f"{name}={value} is unknown; choose one of {list(offers)}")
    return offers[value]


def check_options(
    group: str, options: Mapping[str, Any], what: str, function: Callable[..., Any], given: Collection[str]
) -> None:
    """Refuse options, keywords of a function, that it does not take; `given` are those that it is given anyway."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return
    own = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in given]
    for name in options:
        if name not in own:
            raise UsageError(f"{group}.{name}: {what} takes no {name}; its options are {own}")


def check_types(group: str, options: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Refuse options of another type than a function of ours says, which it must for each."""
    for name, value in options.items():
        kind = inspect.signature(function).parameters[name].annotation
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UsageError(f"{group}.{name} must be of type {kind.__name__}, got {value!r}")
