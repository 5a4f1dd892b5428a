"""Options against the types that a function says."""

from typing import Any, Literal

import pytest

from sidpar.config.groups.checks import check_types
from sidpar.errors import UsageError


def function(
    a: float = 1.0,
    b: "int | None" = None,
    c: list[int] | None = None,
    d: Literal["x", "y"] = "x",
    e: bool = True,
    f=None,
) -> None:  # type: ignore[no-untyped-def]
    """As contributors write them: a type may be a text, a union, a list, one of some values, or missing."""


@pytest.mark.parametrize(
    "options",
    [{"a": 1}, {"a": 0.5, "b": 3}, {"b": None, "c": [1, 2]}, {"c": None, "d": "y"}, {"e": False}, {"f": "anything"}],
)
def test_what_fits(options: dict[str, Any]) -> None:
    check_types("group", options, function)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": "much"}, "group.a must be of type float, got 'much'"),
        ({"a": True}, "group.a must be of type float, got True"),
        ({"b": 0.5}, "group.b must be of type int | None, got 0.5"),
        ({"c": [1, "two"]}, "group.c must be of type list[int] | None, got [1, 'two']"),
        ({"d": "z"}, "group.d must be of type typing.Literal['x', 'y'], got 'z'"),
        ({"e": 1}, "group.e must be of type bool, got 1"),
    ],
)
def test_what_does_not(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_types("group", options, function)
    assert str(caught.value) == message
