"""Whether ranks can stop each other for ever because the host of one of them waits for its whole device.

CUDA loads a kernel when it is first used, and may wait until the device is idle then; so may the handle of a library,
and memory that is given back. To NCCL a message is a kernel too: from its start on a rank until all that take part have
come to it, it occupies that rank's device, one of a group behind the other. So at a *load*, as it is called here, the
host waits until every message is over that its rank has started, and what it would have started next comes later.
A rank that waits for one of these closes the circle.

What is waited for depends on order only, not on time, and a load adds nothing but waiting: lists that end with loads at
certain actions end with loads at any choice of these, on any ranks. One simulation tells.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain

from sidpar.schedules.actions import Action, Do
from sidpar.simulation.ranks_and_messages import Message, Rank
from sidpar.simulation.simulator import GROUPS, Simulation, Verb

Loads = Callable[[int, Action], bool]
"""Whether the host of a rank may have to load something at an action."""


def check_loads(lists: Iterable[Iterable[Action]], loads: Loads, *, shares_statistics: bool = False) -> None:
    """Raises DeadlockError with what each rank is waiting for if these loads can stop ranks for ever. The lists are of
    local learning; `shares_statistics` as for `simulate`."""
    _Loading(lists, loads, shares_statistics=shares_statistics).run()


class _Loading(Simulation):
    """Ranks whose hosts wait at loads. No action occurs twice in a list."""

    def __init__(self, lists: Iterable[Iterable[Action]], loads: Loads, *, shares_statistics: bool) -> None:
        super().__init__(
            lists,
            lambda *_: 0.0,
            chain_groups=2,
            rendezvous=False,
            keep_spans=False,
            extractor_holders=None,
            shares_statistics=shares_statistics,
        )
        self.loads = loads
        self.started: list[list[Message]] = [[] for _ in self.ranks]
        self.loaded: list[Action | None] = [None for _ in self.ranks]
        """The action for which each rank has loaded all that there is, if it has yet to begin it."""
        self.verbs = {do: partial(self.load_first, verb) for do, verb in self.verbs.items()}

    def load_first(self, verb: Verb, rank: Rank, action: Action) -> Message | None:
        if self.loads(rank.number, action) and self.loaded[rank.number] != action:
            idle = self.idle(rank)
            if idle.over is None:
                self.loaded[rank.number] = action
                rank.rest = chain([action], rank.rest)  # once more, when the device is idle
                return idle
        awaited = verb(rank, action)
        if awaited is None and action.do is Do.EXTRACTOR_BACKWARD and self.loads(rank.number, action):
            return self.idle(rank)  # its last kernel comes after the first bucket of gradients has left
        return awaited

    def idle(self, rank: Rank) -> Message:
        """What is over when all that a rank has started is."""
        under_way = [message for message in self.started[rank.number] if message.over is None]
        idle = Message("idle", causes=1)
        for message in under_way:
            idle.go_after(message)
        self.started[rank.number] = under_way
        self.happens(idle, rank.clock)
        return idle

    def state(self, rank: Rank, edge: int, action: Action, *, receives: bool) -> Message:
        message = super().state(rank, edge, action, receives=receives)
        self.started[rank.number].append(message)
        return message

    def start_collective(self, rank: Rank, action: Action) -> None:
        super().start_collective(rank, action)
        group = GROUPS[action.do]
        self.started[rank.number].append(self.collectives[group][rank.counts[group] - 1])
