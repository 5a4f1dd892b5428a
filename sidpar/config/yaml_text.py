"""YAML as people write it: whole numbers as 1e2, keys that hold anchors; and what they write by mistake."""

import re
from collections.abc import Collection
from typing import Any

import yaml


class RepeatedKeyError(yaml.YAMLError):
    """A key stands twice in one mapping, and only the last one would count."""


_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_BEGINNINGS = list("-+0123456789.")
_TAG = "tag:yaml.org,2002:"
_OLD = {f"{_TAG}{kind}" for kind in ("int", "float", "timestamp")}
"""What YAML 1.1 takes for other things than YAML 1.2: 010 for 8, 1:30 for 90, 1e-3 for a text, 2026-11-28 for a day."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers; one that begins with a 0 is a text, since 010 is 8 to some and 10 to others."""

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
    """A whole number that is written with an exponent is one."""
    value = loader.construct_yaml_float(node)
    whole = re.fullmatch(r"[-+]?[0-9]+(\.0*)?[eE][-+]?[0-9]+", node.value) and value.is_integer()
    return int(value) if whole else value


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 or 1.2 would read as numbers."""


_Loader.add_implicit_resolver(f"{_TAG}int", _INT, _BEGINNINGS)
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, _BEGINNINGS)
_Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, _BEGINNINGS)
_Loader.add_constructor(f"{_TAG}float", _number)


def load(text: str, settings: Collection[str]) -> Any:
    """The content, without the keys that begin with `x-` or `_` beside some of `settings`: there is room for anchors.

    Raises yaml.YAMLError.
    """
    content = yaml.load(text, _Loader)
    if isinstance(content, dict) and not content.keys().isdisjoint(settings):
        content = {key: value for key, value in content.items() if not str(key).startswith(("x-", "_"))}
    return content


def dump(content: Any) -> str:
    """What `load` reads back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)
