"""The help of a program with many settings: an overview of the groups on one screen, and each group on request."""

import re
from argparse import SUPPRESS, _HelpAction
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser


class OverviewParser(ArgumentParser):
    """`--help` names the groups of settings, `--GROUP.help` explains the settings of one, `--help.all` all of them."""

    _overview: Sequence[Any] | None = None
    """The groups of arguments that `--help` is about; None before `summarise`."""
    _asked: Sequence[Any] | None = None
    """Those that the next help is about, if it is not `--help`."""

    def summarise(self, settings: Mapping[str, tuple[Any, str]]) -> None:
        """Have an overview, with one line for each group of settings in place of its settings. The program may add
        arguments of its own before and after, which `--help` shows.

        Args:
            settings: by name, the groups of arguments, and what they are about, of which the overview shows the
                beginning.
        """
        names = self.add_argument_group("settings, as --GROUP.KEY VALUE or in the file of --config")
        for name, (group, about) in settings.items():
            group.title = re.split("[.,:;]", about)[0]
            group.description = None if about == f"{group.title}." else about
            names.add_argument(f"--{name}.help", action=_GroupHelp, groups=[group], help=f"{group.title}.")
        every = [self._optionals, *(group for group, _ in settings.values())]
        names.add_argument("--help.all", action=_GroupHelp, groups=every, help="All settings of all groups.")
        self._overview = [self._optionals, names]

    def explain(self, groups: Sequence[Any]) -> None:
        """Print the help of these groups alone."""
        self._asked = groups
        self.print_help()

    def format_help(self, *arguments: Any) -> str:
        groups, usage, description = self._action_groups, self.usage, self.description
        asked, self._asked = self._asked, None
        self._action_groups = list(asked or self._overview or groups)
        if asked is not None:
            self.usage, self.description = SUPPRESS, None
        try:
            return super().format_help(*arguments)
        finally:
            self._action_groups, self.usage, self.description = groups, usage, description


class _GroupHelp(_HelpAction):
    """Explains some groups of arguments, and ends the program."""

    def __init__(self, option_strings: Sequence[str], dest: str, groups: Sequence[Any], help: str) -> None:
        super().__init__(option_strings, SUPPRESS, SUPPRESS, help)
        self._groups = groups

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser.explain(self._groups)
        parser.exit()
