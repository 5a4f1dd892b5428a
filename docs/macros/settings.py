"""The reference of the settings, made from what checks them: their dataclasses, and the registries of names."""

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object

from sidpar.config.groups.refusals import Refusal
from sidpar.config.schema import Config, is_free
from sidpar.data.datasets import DATASETS
from sidpar.methods import METHODS, ON_CPU, complete
from sidpar.methods.base import COSTS
from sidpar.models import EXTRACTORS, MODELS
from sidpar.models import SETTINGS as SETTINGS_OF_MODELS
from sidpar.models.cut_networks import library_model
from sidpar.rules import RULES
from sidpar.rules import SETTINGS as SETTINGS_OF_RULES

NAMES: Mapping[str, Iterable[str]] = {
    "data.name": DATASETS,
    "model.name": MODELS,
    "objective.rule": RULES,
    "method": METHODS,
}
"""The settings that take one of the names of a registry."""
GROUPS: Mapping[str, Any] = {name: kind for name, kind in get_type_hints(Config).items() if is_dataclass(kind)}
SPOKEN = {bool: "true or false", int: "whole number", float: "number", str: "string", NoneType: "null"}


@dataclass(frozen=True)
class Setting:
    """What is known of one setting."""

    key: str
    """The full name, `optim.lr`."""
    text: str
    """What `--help` says."""
    kind: str
    default: str
    unit: str
    """Of numbers; "none" for those without a unit, and "" for other settings."""
    refused: tuple[str, ...]
    """Which values are refused, besides those of another type."""
    is_free: bool
    """Whether a run that is continued may have another value."""


def settings_reference() -> str:
    """All settings by group, in Markdown."""
    known = list(read_settings())
    parts = []
    for field in fields(Config):
        own = [setting for setting in known if setting.key.split(".")[0] == field.name]
        parts.append(f"## {field.name}")
        if field.name in GROUPS:
            links = " · ".join(f"[{setting.key.split('.')[1]}](#{setting.key})" for setting in own)
            text = GROUPS[field.name].__doc__.split("\n\n")[0]
            parts += [_escaped(text), f"{links}\n{{ .facts }}"]
        parts += [_section(setting) for setting in own]
    return "\n\n".join(parts)


def read_settings() -> Iterator[Setting]:
    """Every setting, in the order of the configuration."""
    completed = complete(Config()).flat()
    for field in fields(Config):
        owner = GROUPS.get(field.name, Config)
        names = [field.name] if owner is Config else [own.name for own in fields(owner)]
        texts, kinds = _texts(owner), get_type_hints(owner)
        for name in names:
            key = name if owner is Config else f"{field.name}.{name}"
            yield Setting(
                key,
                texts.get(name, ""),
                _one_of(NAMES[key]) if key in NAMES else _kind(kinds[name]),
                _default(getattr(owner, name, None), completed[key]),
                getattr(owner, "UNITS", {}).get(name, ""),
                tuple(_refused(key, owner)),
                is_free(key),
            )


def takes_numbers(owner: Any, name: str) -> bool:
    """Whether a setting of a group is a number, or a list of numbers."""
    return bool({int, float} & set(_leaves(get_type_hints(owner)[name])))


def _leaves(kind: Any) -> Iterator[Any]:
    if get_origin(kind) in (Literal, dict) or not get_args(kind):
        yield kind
    for part in () if get_origin(kind) in (Literal, dict) else get_args(kind):
        yield from _leaves(part)


def _texts(owner: Any) -> dict[str, str]:
    """The docstrings of attributes, as `--help` reads them."""
    return {param.arg_name: param.description or "" for param in parse_from_object(owner).params}


def _section(setting: Setting) -> str:
    """One setting: its text, a line of facts, and what is refused."""
    facts = [f"type: {setting.kind}", f"default: {setting.default}"]
    facts += [f"unit: {setting.unit}"] if setting.unit else []
    facts += ["may change when a run is continued"] if setting.is_free else []
    lines = [f"### `{setting.key}` {{ #{setting.key} }}", _escaped(setting.text), f"{' · '.join(facts)}\n{{ .facts }}"]
    if len(setting.refused) == 1:
        lines.append(f"Refused: {_with_code(setting.refused[0])}.")
    elif setting.refused:
        lines += ["Refused:", "\n".join(f"- {_with_code(what)}" for what in setting.refused)]
    return "\n\n".join(lines)


def _kind(kind: Any) -> str:
    """A type for people."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return ", or ".join(_kind(part) for part in sorted(parts, key=lambda part: part is NoneType))
    if origin is Literal:
        return _one_of(parts)
    if origin is dict:
        return "plain values by name"
    return f"list of {SPOKEN[parts[0]]}s" if parts else SPOKEN[kind]


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(f"`{name}`" for name in names)


def _default(value: Any, completed: Any) -> str:
    """As YAML; of what is left open, also what it becomes where all settings are left at their defaults."""
    filled = "" if value == completed else f", which means {_code(completed)} if nothing else is set"
    return _code(value) + filled


def _code(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


def _refused(key: str, owner: Any) -> Iterator[str]:
    """Which values each check refuses, in the order of the checks."""
    if key in NAMES:
        yield "a name that is not offered"
    named = [refusal.what for refusal in (*getattr(owner, "REFUSALS", ()), *COSTS, ON_CPU) if key in refusal.keys]
    yield from named
    yield from _refused_by_registries(key)
    yield from _refused_by_methods(key)


def _refused_by_registries(key: str) -> Iterator[str]:
    """What a dataset, a network or a rule does not read."""
    name = key.split(".")[-1]
    readers = {
        "data.name": [source.name for source in DATASETS.values() if name in source.reads],
        "model.name": [model.name for model in MODELS.values() if name in model.settings],
        "objective.rule": [rule.name for rule in RULES.values() if name in rule.reads],
    }
    read_by = {
        **dict.fromkeys(("data.root", "data.download", "data.image_size", "data.workers"), "data.name"),
        **{f"model.{setting}": "model.name" for setting in SETTINGS_OF_MODELS},
        **{f"objective.{setting}": "objective.rule" for setting in SETTINGS_OF_RULES},
    }
    if key in read_by:
        yield from _unless(read_by[key], [*readers[read_by[key]], *_other_networks(key)], NAMES[read_by[key]])
    if key == "compute.channels_last":
        yield from _unless("model.name", [m.name for m in MODELS.values() if m.has_convolutions], MODELS)


def _other_networks(key: str) -> Iterator[str]:
    """The other settings by which a network is named that reads this one."""
    group, name = key.split(".")
    if group == "model" and name in library_model("timm:any").settings:
        yield "model.backbone is given"
    if group == "model" and name in {setting for model in EXTRACTORS.values() for setting in model.settings}:
        yield "model.extractor is given"


def _unless(setting: str, readers: list[str], all_names: Iterable[str]) -> Iterator[str]:
    """Nothing, where every name reads it."""
    if set(readers) != set(all_names):
        yield f"any value but the default, unless {setting} is {' or '.join(readers)}"


def _refused_by_methods(key: str) -> Iterator[str]:
    """What methods do not read, together where it is the same for several, and which of the choices they have."""
    alike: dict[str, list[str]] = {}
    for method in METHODS.values():
        for refusal in method.refuses:
            if key in refusal.keys:
                alike.setdefault(_without_name(refusal, method.name), []).append(method.name)
    for what, names in alike.items():
        yield what.format(method=" or ".join(f"method={name}" for name in names))
    for method in METHODS.values():
        if key.startswith("parallel.") and key.split(".")[1] in method.offers:
            choices = ", ".join(method.offers[key.split(".")[1]])
            yield f"any value but {choices}, with method={method.name}"


def _without_name(refusal: Refusal, name: str) -> str:
    return refusal.what.replace(f"method={name}", "{method}")


def _escaped(text: str) -> str:
    """In one paragraph, `<class>` as it is written."""
    return html.escape(" ".join(text.split()), quote=False)


def _with_code(what: str) -> str:
    """Settings and their values as code."""
    return re.sub(r"\b(?:[a-z_]+\.[a-z_]+(?:=\w+)?|method=\w+)", lambda found: f"`{found[0]}`", _escaped(what))
