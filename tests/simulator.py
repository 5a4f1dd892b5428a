"""Runs the action lists of all ranks on a clock, with messages as NCCL has them, to test schedules without processes.

A message between two ranks takes place once its send has started and its receive is posted, and once all earlier
messages of its group on either rank are over: NCCL runs a group's messages one after the other. Collectives match by
order: the k-th of one rank with the k-th of every other. Messages take no time of their own.
"""

from dataclasses import dataclass, field

from sidpar.placement import Placement
from sidpar.schedule import SCHEDULES, Action, Do, ExtractorUpdate, RankView, ScheduleName, inference

COLLECTIVES = (Do.START_GATHER, Do.START_BROADCAST, Do.START_SCATTER, Do.START_REDUCE)
AWAITS = {
    Do.AWAIT_GATHER: Do.START_GATHER,
    Do.AWAIT_BROADCAST: Do.START_BROADCAST,
    Do.AWAIT_BROADCASTS_SENT: Do.START_BROADCAST,
    Do.AWAIT_SCATTERS: Do.START_SCATTER,
    Do.AWAIT_REDUCE: Do.START_REDUCE,
    Do.AWAIT_REDUCES_SENT: Do.START_REDUCE,
    Do.AWAIT_PARAMETER_GRADIENTS: Do.RELEASE_PARAMETER_GRADIENTS,
}
Lists = list[list[Action]]


class DeadlockError(AssertionError):
    """Some ranks wait for messages that nobody will send."""


@dataclass
class Durations:
    """Of one microbatch on one refiner, and of the extractor on one microbatch of one rank."""

    forward: float = 1.0
    backward: float = 2.0
    extract: float = 0.0
    extractor_backward: float = 0.0

    def of(self, action: Action) -> float:
        return {
            Do.FORWARD: self.forward,
            Do.BACKWARD: self.backward,
            Do.EXTRACT: self.extract,
            Do.EXTRACTOR_BACKWARD: self.extractor_backward,
        }.get(action.do, 0.0)


@dataclass
class Timeline:
    """Per rank: (start, end, action) of everything that takes time."""

    spans: list[list[tuple[float, float, Action]]]
    ends: list[float]

    @property
    def makespan(self) -> float:
        return max(self.ends)

    def draw(self) -> list[str]:
        """One row per rank, one cell per unit of time: F0 (T0 without a graph) and B0, B0 for a backward of two."""
        rows = []
        for spans in self.spans:
            cells = ["  "] * int(self.makespan)
            for start, end, action in spans:
                letter = {Do.FORWARD: "F" if action.graph else "T", Do.BACKWARD: "B"}[action.do]
                cells[int(start) : int(end)] = [f"{letter}{action.microbatch}"] * int(end - start)
            rows.append(" ".join(cells).rstrip())
        return rows


def lists(name: ScheduleName | str, placement: Placement, microbatches: int, update: ExtractorUpdate = "all") -> Lists:
    """All ranks' action lists."""
    schedule = inference if name == "inference" else SCHEDULES[name]  # type: ignore[index]
    return [list(schedule(RankView(placement, r, microbatches, update))) for r in range(placement.num_ranks)]


@dataclass
class Message:
    """One state between two ranks. `before` are the messages that its group runs first, on either rank."""

    microbatch: int | None
    sent: float | None = None
    posted: float | None = None
    before: list["Message"] = field(default_factory=list)
    delivered: float | None = None

    def over(self) -> float | None:
        """When it has been delivered; None while that is unknown."""
        if self.delivered is None and self.sent is not None and self.posted is not None:
            times = [self.sent, self.posted]
            for message in self.before:
                earlier = message.over()
                if earlier is None:
                    return None
                times.append(earlier)
            self.delivered = max(times)
        return self.delivered


class Rank:
    """One rank's place in its list, its clock, and what it has started."""

    def __init__(self, actions: list[Action]) -> None:
        self.actions = actions
        self.position = 0
        self.clock = 0.0
        self.spans: list[tuple[float, float, Action]] = []
        self.sends: list[Message] = []
        self.receives: list[Message] = []
        self.received = 0
        self.collectives: list[tuple[float, Action]] = []
        self.released: Action | None = None
        self.queues: dict[int, list[Message]] = {}

    def enqueue(self, group: int, message: Message) -> None:
        queue = self.queues.setdefault(group, [])
        message.before += queue[-1:]
        queue.append(message)

    def start_collective(self, action: Action) -> None:
        self.collectives.append((self.clock, action))


class Simulation:
    """All ranks. `chain_groups` is 2 in the shipped runtime: neighbouring edges of the chain alternate."""

    def __init__(self, actions: Lists, durations: Durations, chain_groups: int) -> None:
        self.ranks = [Rank(mine) for mine in actions]
        self.edges: list[list[Message]] = [[] for _ in actions]  # edges[r]: from rank r to rank r + 1
        self.durations = durations
        self.chain_groups = chain_groups

    def run(self) -> Timeline:
        while any(rank.position < len(rank.actions) for rank in self.ranks):
            got_on = [self.advance(r) for r in range(len(self.ranks))]
            if not any(got_on):
                stuck = {
                    r: str(rank.actions[rank.position])
                    for r, rank in enumerate(self.ranks)
                    if rank.position < len(rank.actions)
                }
                raise DeadlockError(f"deadlock: {stuck}")
        assert len({len(rank.collectives) for rank in self.ranks}) == 1, "ranks start different numbers of collectives"
        return Timeline([rank.spans for rank in self.ranks], [rank.clock for rank in self.ranks])

    def advance(self, r: int) -> bool:
        """Run rank r until it has to wait; whether it got anywhere."""
        rank, start = self.ranks[r], self.ranks[r].position
        while rank.position < len(rank.actions):
            action = rank.actions[rank.position]
            when = self.ready(rank, action)
            if when is None:
                break
            rank.clock = max(rank.clock, when)
            self.perform(r, rank, action)
            rank.position += 1
        return rank.position > start

    def ready(self, rank: Rank, action: Action) -> float | None:
        """When the action may go on; None while that is unknown."""
        if action.do is Do.AWAIT_STATE:
            return rank.receives[rank.received].over() if rank.received < len(rank.receives) else None
        if action.do is Do.AWAIT_STATES_SENT:
            times = [message.over() for message in rank.sends]
        elif action.do in AWAITS:
            if action.do is Do.AWAIT_PARAMETER_GRADIENTS and rank.released is not None:
                self.leave(rank)  # no backward has completed them, so they leave as they are
            mine = [
                k
                for k, (_, started) in enumerate(rank.collectives)
                if started.do is AWAITS[action.do] and action.microbatch in (None, started.microbatch)
            ]
            times = [self.collected(k) for k in mine]
        else:
            return rank.clock
        return None if None in times else max([rank.clock, *(time for time in times if time is not None)])

    def collected(self, k: int) -> float | None:
        """When the k-th collective, and with it all before, is over."""
        if any(k >= len(rank.collectives) for rank in self.ranks):
            return None
        for j in range(k + 1):
            kinds = {(rank.collectives[j][1].do, rank.collectives[j][1].microbatch) for rank in self.ranks}
            assert len(kinds) == 1, f"collective {j} differs between ranks"
        return max(rank.collectives[j][0] for rank in self.ranks for j in range(k + 1))

    def perform(self, r: int, rank: Rank, action: Action) -> None:
        if action.do is Do.AWAIT_STATE:
            assert rank.receives[rank.received].microbatch == action.microbatch
            rank.received += 1
        elif action.do is Do.SEND_STATE:
            message = self.message(r, len(rank.sends), action)
            message.sent = rank.clock
            rank.sends.append(message)
            rank.enqueue(r % self.chain_groups, message)
        elif action.do is Do.POST_STATE:
            message = self.message(r - 1, len(rank.receives), action)
            message.posted = rank.clock
            rank.receives.append(message)
            rank.enqueue((r - 1) % self.chain_groups, message)
        elif action.do in COLLECTIVES:
            rank.start_collective(action)
        elif action.do is Do.RELEASE_PARAMETER_GRADIENTS:
            rank.released = action
        if length := self.durations.of(action):
            rank.spans.append((rank.clock, rank.clock + length, action))
            rank.clock += length
        if action.do is Do.EXTRACTOR_BACKWARD and rank.released is not None:
            self.leave(rank)  # at the latest; buckets of a real backward leave during it

    def leave(self, rank: Rank) -> None:
        assert rank.released is not None
        rank.start_collective(rank.released)
        rank.released = None

    def message(self, edge: int, k: int, action: Action) -> Message:
        """The k-th message of an edge, as both its ends see it."""
        if k == len(self.edges[edge]):
            self.edges[edge].append(Message(action.microbatch))
        assert self.edges[edge][k].microbatch == action.microbatch, "send and receive are of different microbatches"
        return self.edges[edge][k]


def simulate(actions: Lists, durations: Durations = Durations(), *, chain_groups: int = 2) -> Timeline:
    """Run all ranks until they end. Raises DeadlockError with what each one is waiting for."""
    return Simulation(actions, durations, chain_groups).run()
