"""A command line to a configuration: defaults < YAML < dotted flags, parsed by jsonargparse. No torch."""

from collections.abc import Sequence

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from sidpar.config import Config
from sidpar.errors import UsageError


def parse(arguments: Sequence[str] | None = None) -> Config:
    """The configuration of a command line: `--config FILE`, then `--group.key VALUE` over it.

    A mistake ends the process with exit code 2 and one line that names the key. `--print_config` prints the resolved
    configuration, as the run folder would keep it, and ends the process.
    """
    parser = _parser()
    namespace = parser.parse_args(arguments)
    try:
        settings = parser.instantiate(namespace)
        print_only = settings.pop("print_config")
        settings.pop("config")
        config = Config(**settings)
    except UsageError as error:
        parser.error(str(error))
    if print_only:
        print(to_yaml(config), end="")
        parser.exit()
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as a file that `--config` reads back."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def _parser() -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="sidpar.train",
        usage="torchrun --nproc_per_node=K -m sidpar.train [--config FILE] [--group.key VALUE ...]",
        description="Train a cascade by Synergistic Information Distillation, one process per rank.",
        default_env=False,
        print_config=None,  # jsonargparse's own would print settings that are neither resolved nor validated
    )
    parser.add_argument("--config", action="config", help="YAML file of differences from the defaults.")
    parser.add_argument("--print_config", action="store_true", help="Print the resolved configuration and exit.")
    parser.add_class_arguments(Config)
    return parser
