"""Which contenders are timed beside each other: as many as fit into memory together. No torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sidpar.config.units import human


@dataclass(frozen=True)
class Need:
    """Memory of one contender, in bytes, on the rank where it is largest."""

    held: float
    """Between its steps: weights, and the optimizer's state."""
    peak: float
    """In a step, what is held included."""


@dataclass(frozen=True)
class Groups:
    """Contenders by their keys."""

    groups: list[list[str]] = field(default_factory=list)
    """Those that are in memory at the same time and timed in turn. All groups begin with the same one, the
    reference."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why the others are in no group."""


def groups_that_fit(needs: Mapping[str, Need], limit: float | None) -> Groups:
    """Groups whose members fit into `limit` bytes together; without a limit, one group.

    The first contender that fits is the reference and in every group: how much faster or slower it is in one group than
    in all tells how far the machine has drifted. Each other one is in the first group that has room for it, or left out
    where there is no room even beside the reference alone.
    """
    if limit is None:
        return Groups([list(needs)] if needs else [])
    found = Groups()
    reference = next((key for key, need in needs.items() if need.peak <= limit), "")
    for key, need in needs.items():
        if need.peak > limit:
            found.left_out[key] = f"needs more than {human(limit)}: {human(need.peak)}"
        elif key == reference:
            found.groups.append([key])
        elif (both := memory_together([needs[reference], need])) > limit:
            beside = f"with {reference} beside it, the reference of every group"
            found.left_out[key] = f"needs more than {human(limit)}: {human(both)} {beside}"
        else:
            _place(key, found.groups, needs, limit)
    return found


def memory_together(needs: Iterable[Need]) -> float:
    """Bytes of contenders that all hold what they hold, while one at a time works."""
    found = list(needs)
    return sum(need.held for need in found) + max(need.peak - need.held for need in found)


def _place(key: str, groups: list[list[str]], needs: Mapping[str, Need], limit: float) -> None:
    """Into the first group with room for it, or into one of its own beside the reference."""
    for group in groups:
        if memory_together(needs[member] for member in [*group, key]) <= limit:
            group.append(key)
            return
    groups.append([groups[0][0], key])
