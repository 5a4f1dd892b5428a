"""The checks that settings share: each refuses with the setting's name, its value and what to change. No torch."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from sidpar.errors import UsageError

Offered = TypeVar("Offered")


def at_least(name: str, value: float | None, least: float) -> None:
    if value is None or not value >= least:
        raise UsageError(f"{name} must be at least {least}, got {value}")


def positive(name: str, value: float) -> None:
    if not value > 0:
        raise UsageError(f"{name} must be a positive number, got {value}")
    if value == float("inf"):
        raise UsageError(f"{name} must be a finite number, got {value}: give a large number instead")


def fill_in(settings: Any, **values: Any) -> None:
    """Fill in the settings that are None. Only for their own `__post_init__`, since settings are frozen."""
    for name, value in filled(settings, **values).items():
        object.__setattr__(settings, name, value)


def filled(settings: Any, **values: Any) -> dict[str, Any]:
    """Of these values, those whose setting is None, for `dataclasses.replace`."""
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
    """The entry of a registry that a setting names. Raises UsageError if there is none."""
    if value not in offers:
        raise UsageError(f"{name}={value} is unknown; choose one of {list(offers)}")
    return offers[value]


def check_options(
    group: str, options: Mapping[str, Any], what: str, function: Callable[..., Any], given: Collection[str]
) -> None:
    """Refuse options that a function does not take as keywords; `given` are keywords that it always gets."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return
    own = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in given]
    for name in options:
        if name not in own:
            raise UsageError(f"{group}.{name}: {what} takes no {name}; its options are {own}")


def check_types(group: str, options: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Refuse options whose type is not that of the function's annotation, where there is one."""
    parameters = inspect.signature(function, eval_str=True).parameters
    for name, value in options.items():
        annotation = parameters[name].annotation if name in parameters else Any
        if annotation is not inspect.Parameter.empty and not _is_a(value, annotation):
            kind = annotation.__name__ if isinstance(annotation, type) else annotation
            raise UsageError(f"{group}.{name} must be of type {kind}, got {value!r}")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a plain value is of a type; an int counts as a float, a bool does not count as a number."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is_a(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_is_a(item, inner[0]) for item in value)
    if kind is None:
        return value is None
    return kind is Any or type(value) is kind or (kind is float and type(value) is int)
