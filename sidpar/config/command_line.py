"""A command line to a configuration: defaults < YAML < dotted flags, parsed by jsonargparse. No torch."""

import re
import sys
from argparse import Action, ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    set_loader,
    set_parsing_settings,
)

from sidpar.config import yaml_text
from sidpar.config.numbers import read_flag, refuse_numbers_as_names, refuse_text
from sidpar.config.overview import OverviewParser
from sidpar.config.schema import Config
from sidpar.errors import RunError, UsageError

Complete = Callable[[Config], Config]
"""Decides the settings that are None: `methods.complete`, which this package may not import."""


def parse(parser: ArgumentParser, arguments: Sequence[str] | None, complete: Complete) -> tuple[Config, dict[str, Any]]:
    """The configuration, and the program's own arguments by name.

    A mistake ends the process with exit code 2 and one line that names the key.
    """
    namespace = parser.parse_args(arguments)
    try:
        _check(namespace)
        settings = dict(parser.instantiate(namespace))
        config = complete(Config(**{name: settings[name] for name in _NAMES}))
    except UsageError as error:
        parser.error(str(error))
    return config, {name: value for name, value in settings.items() if name not in (*_NAMES, "config")}


@contextmanager
def errors_in_one_line(program: str) -> Iterator[None]:
    """Show UsageError and RunError as one line without a traceback, and end with exit code 2 for a mistake, 1 for a run
    that cannot go on."""
    try:
        yield
    except (UsageError, RunError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from error


def to_yaml(config: Config) -> str:
    """The resolved configuration as a file that `--config` reads back."""
    return yaml_text.dump(config.to_dict())


def from_yaml(text: str) -> Config:
    """The configuration that `to_yaml` has written. Raises UsageError where `parse` would end the process."""
    parser = config_parser("config.yaml", "", "", exit_on_error=False)
    try:
        _check_content(text)
        namespace = parser.parse_string(text)
        _check(namespace)
        settings = dict(parser.instantiate(namespace))
    except ArgumentError as error:
        raise UsageError(str(error)) from error
    return Config(**{name: settings[name] for name in _NAMES})


def config_parser(program: str, usage: str, description: str, *, exit_on_error: bool = True) -> ArgumentParser:
    """The parser of a program that takes a configuration; the program may add arguments of its own."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("sidpar", _load, exceptions=(yaml.YAMLError,))
    parser = _Parser(
        prog=program,
        usage=usage,
        description=description,
        exit_on_error=exit_on_error,
        default_env=False,
        parser_mode="sidpar",
        print_config=None,  # jsonargparse's own would print settings that are neither resolved nor validated
    )
    parser.add_argument("--config", action=_ConfigFile, help="YAML file with settings; flags win over it.")
    parser.add_class_arguments(Config)
    groups = parser.groups or {}
    settings = {"method": (groups[Config.__name__], "How the network learns.")}
    settings |= {name: (groups[name], " ".join(str(kind.__doc__).split())) for name, kind in _GROUPS.items()}
    parser.summarise(settings)
    return parser


class _Parser(OverviewParser):
    """Says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(_in_one_line(message), ex)

    def _get_value(self, action: Action, arg_string: str) -> Any:
        """jsonargparse by itself would read strings as numbers by its own rules."""
        value, kind = super()._get_value(action, arg_string), _KINDS.get(action.dest)
        if kind is None or not isinstance(value, str):
            return value
        try:
            value = read_flag(kind, value)
            refuse_text(action.dest, kind, value)
        except UsageError as error:
            self.error(str(error))
        return value


class _ConfigFile(ActionConfigFile):
    """Checks a file as a whole before its settings are read one by one."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        path = Path(values)
        if path.is_file():
            try:
                _check_content(path.read_text())
            except UnicodeDecodeError:
                parser.error(f"{path}: expected YAML, a text file in UTF-8")
            except UsageError as error:
                parser.error(f"{path}: {error}")
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


def _load(text: str) -> Any:
    """YAML, in which `parallel: auto` is short for `parallel: {auto: true}`."""
    content = yaml_text.load(text, _NAMES)
    if isinstance(content, dict) and content.get("parallel") == "auto":
        content["parallel"] = {"auto": True}
    return content


def _check_content(text: str) -> None:
    """Raises UsageError for a file that does not hold settings by their groups and names."""
    try:
        content = _load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise UsageError(f"{where}{getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else repr(content)
        raise UsageError(f"expected settings by name, such as optim: {{lr: 0.001}}, got {found}")
    for name, value in content.items():
        if name not in _GROUPS:
            continue
        if not isinstance(value, dict):
            raise UsageError(_no_group(name, value))
        refuse_numbers_as_names(name, value)
        for key, setting in value.items():
            refuse_text(f"{name}.{key}", _KINDS.get(f"{name}.{key}"), setting)


def _check(namespace: Namespace) -> None:
    """Raises UsageError if a group is not a mapping, or if a setting is null that may not be."""
    for name in _NAMES:
        value = namespace[name]
        if name in _GROUPS and not isinstance(value, Namespace):
            raise UsageError(_no_group(name, value))
        hints = get_type_hints(_GROUPS[name]) if name in _GROUPS else {}
        for key, kind in hints.items():
            if value[key] is None and type(None) not in get_args(kind):
                raise UsageError(f"{name}.{key}: expected {getattr(kind, '__name__', kind)}, got null")
    if namespace.method is None:
        raise UsageError("method: expected str, got null")


def _no_group(name: str, value: Any) -> str:
    example = next(iter(get_type_hints(_GROUPS[name])))
    found = "null" if value is None else repr(value)
    return f"{name}: expected settings by name, such as {name}.{example}, got {found}"


def _in_one_line(message: str) -> str:
    """One line for jsonargparse's message about a value of the wrong type, which has up to nine."""
    found = re.search(r'Parser key "([^"]+)":(.*)', message, re.DOTALL)
    if found is not None:
        kinds = re.findall(r"Expected an? (.+?)(?:\. Got value:.*)?$", found[2], re.MULTILINE)
        values = re.findall(r"(?:Got|Given) value: (.*?)$", found[2], re.MULTILINE)
        if kinds and values:
            return f"{found[1]}: expected {' or '.join(_spoken(kind) for kind in kinds)}, got {values[-1]}"
    return " ".join(message.split())


def _spoken(kind: str) -> str:
    """The name of a type, as messages give it."""
    kind = re.sub(r"<class '(\w+)'>", r"\1", kind).replace("NoneType", "null")
    choices = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    return f"one of {choices[1]}" if choices else kind


_NAMES = [field.name for field in fields(Config)]
_GROUPS: Mapping[str, Any] = {name: kind for name, kind in get_type_hints(Config).items() if is_dataclass(kind)}
_KINDS: Mapping[str, Any] = {
    f"{name}.{key}": kind for name, group in _GROUPS.items() for key, kind in get_type_hints(group).items()
}
"""The type of each setting in a group."""
