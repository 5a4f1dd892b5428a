"""YAML files of settings: numbers as in YAML 1.2, `1e2` as a whole number, keys that only hold anchors, and repeated
keys refused."""

import re
from collections.abc import Collection
from typing import Any

import yaml


class RepeatedKeyError(yaml.YAMLError):
    """A key is given twice in one mapping; YAML would silently use the last one."""


_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_BEGINNINGS = list("-+0123456789.")
_TAG = "tag:yaml.org,2002:"
_OLD = {f"{_TAG}{kind}" for kind in ("int", "float", "timestamp")}
"""The types that YAML 1.1 reads differently from YAML 1.2: 010 as 8, 1:30 as 90, 1e-3 as a string, 2026-11-28 as a
date."""


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does, but 010 as a string, because YAML 1.1 reads it as 8."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as in PyYAML)
        beginning: [(tag, pattern) for tag, pattern in resolvers if tag not in _OLD]
        for beginning, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as it is written: merge keys are still one key
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise RepeatedKeyError(
                    f"{key.value} is given twice, in line {lines[key.value]} and in line {line}: remove one"
                )
            lines[key.value] = line
        return node


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    """A float, or an int if it is a whole number written with an exponent."""
    value = loader.construct_yaml_float(node)
    whole = re.fullmatch(r"[-+]?[0-9]+(\.0*)?[eE][-+]?[0-9]+", node.value) and value.is_integer()
    return int(value) if whole else value


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.1 or 1.2 would read as numbers."""


_Loader.add_implicit_resolver(f"{_TAG}int", _INT, _BEGINNINGS)
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, _BEGINNINGS)
_Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, _BEGINNINGS)
_Loader.add_constructor(f"{_TAG}float", _number)


def load(text: str, settings: Collection[str]) -> Any:
    """The content. If it holds some of `settings`, keys that begin with `x-` or `_` are left out: they may hold
    anchors.

    Raises yaml.YAMLError.
    """
    content = yaml.load(text, _Loader)
    if isinstance(content, dict) and not content.keys().isdisjoint(settings):
        content = {key: value for key, value in content.items() if not str(key).startswith(("x-", "_"))}
    return content


def dump(content: Any) -> str:
    """The content as YAML that `load` reads back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)
