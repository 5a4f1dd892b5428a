"""The help of a program with many settings: an overview of the groups on one screen, and each group on request."""

from argparse import SUPPRESS, _HelpAction
from collections.abc import Collection, Sequence
from typing import Any

from jsonargparse import ArgumentParser


class OverviewParser(ArgumentParser):
    """`--help` names the groups of settings, `--GROUP.help` explains the settings of one, `--help.all` all of them."""

    _shown: Sequence[Any] | None = None
    """The groups of arguments that the next help is about; None for the overview."""
    _overview: Sequence[Any] | None = None

    def summarise(self, groups: Collection[str], others: str) -> None:
        """Have an overview of what has been added so far: of `groups` one line each, of all other settings, which are
        in the group `others`, their own help. The program's own arguments may follow."""
        self._names = self.add_argument_group("settings, as --GROUP.KEY VALUE or in the file of --config")
        for name in groups:
            self._names.add_argument(f"--{name}.help", action=_GroupHelp, help=f"{self.groups[name].title}.")
        self._names.add_argument("--help.all", action=_GroupHelp, help="All settings of all groups.")
        self.groups[others].title = "setting without a group"
        self._overview = [self._optionals, self._names, self.groups[others]]

    def explain(self, option: str) -> None:
        """Print what `--GROUP.help` or `--help.all` asks for."""
        name = option.removeprefix("--").removesuffix(".help")
        every = [group for group in self._action_groups if group is not self._names]
        self._shown = [self.groups[name]] if name in self.groups else every
        self.print_help()

    def format_help(self, *arguments: Any) -> str:
        groups, usage, description = self._action_groups, self.usage, self.description
        shown, self._shown = self._shown, None
        self._action_groups = list(shown or self._overview or groups)
        if shown is not None:
            self.usage, self.description = SUPPRESS, None
        try:
            return super().format_help(*arguments)
        finally:
            self._action_groups, self.usage, self.description = groups, usage, description


class _GroupHelp(_HelpAction):
    """Ends the program after it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser.explain(option_string)
        parser.exit()
