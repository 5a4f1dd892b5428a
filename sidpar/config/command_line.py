"""A command line to a configuration: defaults < YAML < dotted flags, parsed by jsonargparse. No torch."""

import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings

from sidpar.config.schema import Config
from sidpar.errors import RunError, UsageError

Complete = Callable[[Config], Config]
"""What decides the settings that were left open: `methods.complete`, which this package may not know."""


def parse(parser: ArgumentParser, arguments: Sequence[str] | None, complete: Complete) -> tuple[Config, dict[str, Any]]:
    """The configuration, and the program's own arguments by name.

    A mistake ends the process with exit code 2 and one line that names the key.
    """
    namespace, names = parser.parse_args(arguments), [field.name for field in fields(Config)]
    try:
        settings = dict(parser.instantiate(namespace))
        config = complete(Config(**{name: settings[name] for name in names}))
    except UsageError as error:
        parser.error(str(error))
    return config, {name: value for name, value in settings.items() if name not in (*names, "config")}


@contextmanager
def errors_in_one_line(program: str) -> Iterator[None]:
    """What a person can mend is shown as one line, without a traceback: exit code 2 for a mistake, 1 for a run that
    cannot go on."""
    try:
        yield
    except (UsageError, RunError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from error


def to_yaml(config: Config) -> str:
    """The resolved configuration as a file that `--config` reads back."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def from_yaml(text: str) -> Config:
    """The configuration that `to_yaml` has written. Raises UsageError, where a program would end."""
    parser = config_parser("config.yaml", "", "", exit_on_error=False)
    try:
        settings = dict(parser.instantiate(parser.parse_string(text)))
    except ArgumentError as error:
        raise UsageError(" ".join(str(error).split())) from error
    return Config(**{field.name: settings[field.name] for field in fields(Config)})


def config_parser(program: str, usage: str, description: str, *, exit_on_error: bool = True) -> ArgumentParser:
    """Of a program that takes a configuration; it may add arguments of its own."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("sidpar", _load, exceptions=(yaml.YAMLError,))
    parser = ArgumentParser(
        prog=program,
        usage=usage,
        description=description,
        exit_on_error=exit_on_error,
        default_env=False,
        parser_mode="sidpar",
        print_config=None,  # jsonargparse's own would print settings that are neither resolved nor validated
    )
    parser.add_argument("--config", action="config", help="YAML file of differences from the defaults.")
    parser.add_class_arguments(Config)
    return parser


def _load(text: str) -> Any:
    """YAML, in which `parallel: auto` is short for `parallel: {auto: true}`."""
    content = get_loader("yaml")(text)
    if isinstance(content, dict) and content.get("parallel") == "auto":
        content["parallel"] = {"auto": True}
    return content
