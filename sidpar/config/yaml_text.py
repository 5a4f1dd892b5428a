"""YAML as people write it: whole numbers as 1e2, keys that hold anchors; and what they write by mistake."""

import re
from collections.abc import Collection
from typing import Any

import yaml


class RepeatedKeyError(yaml.YAMLError):
    """A key stands twice in one mapping, and only the last one would count."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers, which SafeLoader (YAML 1.1) takes for text where they have no point: 1e-3."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as it is written: merge keys are still one key
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
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


_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+([eE][-+]?[0-9]+)?"
    r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def load(text: str, settings: Collection[str]) -> Any:
    """The content, without the keys that begin with `x-` or `_` beside some of `settings`: there is room for anchors.

    Raises yaml.YAMLError.
    """
    content = yaml.load(text, _Loader)
    if isinstance(content, dict) and not content.keys().isdisjoint(settings):
        content = {key: value for key, value in content.items() if not str(key).startswith(("x-", "_"))}
    return content
