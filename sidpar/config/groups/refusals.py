"""What is refused of settings, as data: checked when a configuration is made, and listed in the reference. No torch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sidpar.config.groups.checks import at_least, positive, without_effect
from sidpar.errors import UsageError


@dataclass(frozen=True)
class Refusal:
    """Values of one or more settings of a group that are refused for one reason."""

    keys: tuple[str, ...]
    """The settings by full name, `data.batch_size`."""
    what: str
    """Which values, for people: `less than 1`."""
    check: Callable[[Any], None]
    """Raises UsageError for settings of that group with such values."""

    @property
    def group(self) -> str:
        """The group whose settings it looks at: `data`."""
        return self.keys[0].split(".")[0]


def refuse(settings: Any, refusals: Iterable[Refusal]) -> None:
    """Raises UsageError for the first refusal that applies to these settings."""
    for refusal in refusals:
        refusal.check(settings)


def less_than(least: int, *keys: str) -> Iterable[Refusal]:
    """Numbers below `least`. A setting that is left open is not refused."""
    for key in keys:
        yield Refusal((key,), f"less than {least}", _unless_open(key, lambda key, value: at_least(key, value, least)))


def not_positive(*keys: str) -> Iterable[Refusal]:
    """0, negative numbers and infinity."""
    for key in keys:
        yield Refusal((key,), "0, a negative number, or infinity", _unless_open(key, positive))


def outside(interval: str, *keys: str) -> Iterable[Refusal]:
    """Numbers, or lists with a number, outside an interval such as `[0, 1)`."""
    low, high = (float(end) for end in interval[1:-1].split(","))

    def lies_within(value: float) -> bool:
        above = value >= low if interval[0] == "[" else value > low
        return above and (value <= high if interval[-1] == "]" else value < high)

    def check(key: str, value: float | Sequence[float]) -> None:
        if not all(lies_within(number) for number in (value if isinstance(value, Sequence) else [value])):
            raise UsageError(f"{key} must lie in {interval}, got {value}")

    for key in keys:
        yield Refusal((key,), f"outside {interval}", _unless_open(key, check))


def not_among(choices: Sequence[str], key: str) -> Refusal:
    """Names that are not offered: what the command line refuses by the setting's type, for settings made in Python."""

    def check(key: str, value: str) -> None:
        if value not in choices:
            raise UsageError(f"{key} must be one of {choices}, got {value!r}")

    return Refusal((key,), "another name", _unless_open(key, check))


def unread(
    where: str, reason: str | Callable[[Any], str], *keys: str, when: Callable[[Any], bool] = lambda settings: True
) -> Refusal:
    """Values other than the default of settings of a group that nothing would read where `when` is true of the group.

    Args:
        where: the condition, for the reference: `unless parallel.schedule=streaming`.
        reason: why, for the error message, or what makes it of the group.
    """
    names = [key.split(".")[1] for key in keys]

    def check(settings: Any) -> None:
        if when(settings):
            without_effect(refusal.group, settings, names, reason if isinstance(reason, str) else reason(settings))

    refusal = Refusal(keys, f"any value but the default, {where}", check)
    return refusal


def _unless_open(key: str, check: Callable[[str, Any], None]) -> Callable[[Any], None]:
    """`check` for the value that settings of a group have, unless it is None."""
    name = key.split(".")[1]

    def checked(settings: Any) -> None:
        value = getattr(settings, name)
        if value is not None:
            check(key, value)

    return checked
