"""Numbers in settings: those of YAML 1.2, on the command line too. Strings that look like numbers are refused."""

import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from sidpar.config import yaml_text
from sidpar.errors import UsageError


def read_flag(kind: Any, text: str) -> Any:
    """The value that a YAML file would hold in place of this flag. Settings that take strings or choices are left as
    they are."""
    if _takes_text(kind) or bool in _alternatives(kind) or not text.strip():
        return text
    try:
        return yaml_text.load(text, ())
    except yaml.YAMLError:
        return text


def refuse_text(key: str, kind: Any, value: Any) -> None:
    """Raises UsageError for a string where a number is expected, also within lists: `010` (octal 8 in YAML 1.1),
    `1:30`, `0,1`."""
    alternatives = _alternatives(kind)
    if isinstance(value, list):
        for element in (one for each in alternatives for one in get_args(each) if not _takes_text(each)):
            for each in value:
                refuse_text(key, element, each)
    elif isinstance(value, str) and not _takes_text(kind) and {int, float} & set(alternatives):
        names = " or ".join("null" if each is types.NoneType else _name(each) for each in alternatives)
        raise UsageError(f"{key}: expected {names}, got {value}{_remedy(value)}")


def refuse_numbers_as_names(group: str, settings: Mapping[Any, Any]) -> None:
    """Raises UsageError for `{lr: 0,1}`, which YAML reads as lr: 0 and a key 1 without a value."""
    for key in settings:
        if not isinstance(key, str):
            hint = "; a number has a decimal point, not a comma" if isinstance(key, int) else ""
            raise UsageError(f"{group}: expected settings by name, but {key!r} is not a name{hint}")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _takes_text(kind: Any) -> bool:
    return any(each is str or get_origin(each) in (Literal, dict) for each in _alternatives(kind))


def _name(kind: Any) -> str:
    if get_args(kind):
        return f"a list of {_name(get_args(kind)[0])}"
    return str(getattr(kind, "__name__", kind))


def _remedy(text: str) -> str:
    """What to change in `0,1` and in a number in quotes."""
    if isinstance(read_flag(float, text), int | float):
        return ", a string: write it without quotes"
    if re.fullmatch(r"[-+]?[0-9]+,[0-9]+([eE][-+]?[0-9]+)?", text):
        return f": write {text.replace(',', '.')}, with a decimal point, not a comma"
    return ""
