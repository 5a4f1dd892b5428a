"""Runs the action lists of all ranks on a clock: tests schedules without processes, and times them for the cost model.

Messages behave as on NCCL, which is the stricter of the backends. A state goes from one rank to the next once its send
has started and its receive is posted, and once all earlier messages of its group on either rank are over: NCCL runs a
group's messages one after the other. The activations of a pipeline of backpropagation, whose receives torch posts
ahead, go once they are sent. Collectives match by order: the k-th of a group on one rank with the k-th on every other.

The ranks are those of one cascade. Its replicas do the same at the same time, so the sums of refiners' gradients over
them run one after the other on a group of each rank's own, from the backward that completes them on.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from sidpar.actions import Action, Do
from sidpar.phases import COMPUTE, PHASE

GROUPS = {
    Do.START_GATHER: "features",
    Do.START_BROADCAST: "features",
    Do.START_SCATTER: "feature gradients",
    Do.START_REDUCE: "feature gradients",
    Do.RELEASE_PARAMETER_GRADIENTS: "parameter gradients",
}
"""The process group of each collective, as in `transport.py`."""
AWAITS = {
    Do.AWAIT_GATHER: Do.START_GATHER,
    Do.AWAIT_BROADCAST: Do.START_BROADCAST,
    Do.AWAIT_BROADCASTS_SENT: Do.START_BROADCAST,
    Do.AWAIT_SCATTERS: Do.START_SCATTER,
    Do.AWAIT_REDUCE: Do.START_REDUCE,
    Do.AWAIT_REDUCES_SENT: Do.START_REDUCE,
    Do.AWAIT_PARAMETER_GRADIENTS: Do.RELEASE_PARAMETER_GRADIENTS,
}
_ARRIVALS = {Do.AWAIT_ACTIVATION: Do.SEND_ACTIVATION, Do.AWAIT_ACTIVATION_GRADIENT: Do.SEND_ACTIVATION_GRADIENT}
Lists = list[list[Action]]
Seconds = Callable[[int, Action], float]
"""How long an action of a rank takes; of the start of a message, how long the message is under way."""


class DeadlockError(AssertionError):
    """Some ranks wait for messages that nobody will send."""


@dataclass
class Durations:
    """Of one microbatch on one refiner, and of the extractor on one microbatch of one rank; messages take none."""

    forward: float = 1.0
    backward: float = 2.0
    extract: float = 0.0
    extractor_backward: float = 0.0

    def __call__(self, rank: int, action: Action) -> float:
        return {
            Do.FORWARD: self.forward,
            Do.BACKWARD: self.backward,
            Do.EXTRACT: self.extract,
            Do.EXTRACTOR_BACKWARD: self.extractor_backward,
            Do.SECTION_FORWARD: self.forward,
            Do.SECTION_BACKWARD: self.backward,
            Do.SECTION_INPUT_BACKWARD: self.backward / 2,
            Do.SECTION_WEIGHT_BACKWARD: self.backward / 2,
        }.get(action.do, 0.0)


@dataclass
class Timeline:
    """Per rank: (start, end, action) of everything that takes time."""

    spans: list[list[tuple[float, float, Action]]]
    ends: list[float]

    @property
    def makespan(self) -> float:
        return max(self.ends)

    @property
    def bubble(self) -> float:
        """The share of the step in which a rank, on average, does not compute."""
        work = [end - start for spans in self.spans for start, end, a in spans if PHASE[a.do] in COMPUTE]
        return 1 - sum(work) / (len(self.spans) * self.makespan) if self.makespan else 0.0

    def draw(self) -> list[str]:
        """One row per rank, one cell per unit of time: F0 (T0 without a graph) and B0, B0 for a backward of two."""
        rows = []
        for spans in self.spans:
            cells = ["  "] * int(self.makespan)
            for start, end, action in [span for span in spans if span[2].do in (Do.FORWARD, Do.BACKWARD)]:
                letter = "B" if action.do is Do.BACKWARD else "F" if action.graph else "T"
                cells[int(start) : int(end)] = [f"{letter}{action.microbatch}"] * int(end - start)
            rows.append(" ".join(cells).rstrip())
        return rows


@dataclass
class Message:
    """One state between two ranks. `before` are the messages that its group runs first, on either rank."""

    batch: tuple[int, int | None]
    """Step and microbatch."""
    sent: float | None = None
    posted: float | None = None
    seconds: float = 0.0
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
            self.delivered = max(times) + self.seconds
            self.before = []
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
        self.collectives: dict[str, list[tuple[float, Action]]] = defaultdict(list)
        self.released: Action | None = None
        self.releases_refiners = False
        self.refiners_summed = 0.0  # when the last sum over replicas is over
        self.last: dict[int, Message] = {}

    def enqueue(self, group: int, message: Message) -> None:
        """Put a message behind the last one of its group."""
        if group in self.last:
            message.before.append(self.last[group])
        self.last[group] = message

    def start_collective(self, action: Action) -> None:
        self.collectives[GROUPS[action.do]].append((self.clock, action))


class Simulation:
    """All ranks. `chain_groups` is 2 in the shipped runtime: neighbouring edges of the chain alternate."""

    def __init__(self, actions: Lists, seconds: Seconds, chain_groups: int) -> None:
        self.ranks = [Rank(mine) for mine in actions]
        self.edges: list[list[Message]] = [[] for _ in actions]  # edges[r]: from rank r to rank r + 1
        self.arrivals: dict[tuple[Do, int | None, int | None], float] = {}
        self.collected: dict[str, list[float]] = defaultdict(list)  # when the k-th collective of a group is over
        # A root extractor's gradients are summed over the first ranks of all replicas, and no others of this cascade.
        holders = [rank for rank in self.ranks if any(a.do is Do.EXTRACTOR_BACKWARD for a in rank.actions)]
        self.members = dict.fromkeys(GROUPS.values(), self.ranks) | {"parameter gradients": holders}
        self.seconds = seconds
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
        for group, members in self.members.items():
            counts = {len(rank.collectives[group]) for rank in members}
            assert len(counts) <= 1, f"ranks start different numbers of collectives of {group}"
        return Timeline([rank.spans for rank in self.ranks], [rank.clock for rank in self.ranks])

    def advance(self, r: int) -> bool:
        """Run rank r until it has to wait; whether it got anywhere."""
        rank, start = self.ranks[r], self.ranks[r].position
        while rank.position < len(rank.actions):
            action = rank.actions[rank.position]
            when = self.ready(rank, action)
            if when is None:
                break
            if when > rank.clock:
                rank.spans.append((rank.clock, when, action))
                rank.clock = when
            self.perform(r, rank, action)
            rank.position += 1
        return rank.position > start

    def ready(self, rank: Rank, action: Action) -> float | None:
        """When the action may go on; None while that is unknown."""
        if action.do is Do.AWAIT_STATE:
            return rank.receives[rank.received].over() if rank.received < len(rank.receives) else None
        if action.do in _ARRIVALS:
            return self.arrivals.get((_ARRIVALS[action.do], action.microbatch, action.section))
        if action.do is Do.AWAIT_REFINER_GRADIENTS:
            assert rank.releases_refiners, "refiners' gradients are awaited that have not been released"
            return max(rank.clock, rank.refiners_summed)
        if action.do is Do.AWAIT_STATES_SENT:
            times = [message.over() for message in rank.sends if message.batch[0] == action.step]
        elif action.do in AWAITS:
            if action.do is Do.AWAIT_PARAMETER_GRADIENTS and rank.released is not None:
                self.leave(rank)  # no backward has completed them, so they leave as they are
            group = GROUPS[AWAITS[action.do]]
            self.collect(group)
            over = self.collected[group]
            times = [
                over[k] if k < len(over) else None
                for k, (_, started) in enumerate(rank.collectives[group])
                if started.step == action.step and action.microbatch in (None, started.microbatch)
            ]
        else:
            return rank.clock
        return None if None in times else max([rank.clock, *(time for time in times if time is not None)])

    def collect(self, group: str) -> None:
        """Finish the collectives of a group that all of its ranks have started, one after the other."""
        started = [rank.collectives[group] for rank in self.members[group]]
        over = self.collected[group]
        for k in range(len(over), min(len(mine) for mine in started)):
            kinds = {(mine[k][1].do, mine[k][1].step, mine[k][1].microbatch) for mine in started}
            assert len(kinds) == 1, f"collective {k} of {group} differs between ranks"
            begin = max([mine[k][0] for mine in started] + over[-1:])
            over.append(begin + self.seconds(0, started[0][k][1]))

    def perform(self, r: int, rank: Rank, action: Action) -> None:
        if action.do is Do.AWAIT_STATE:
            assert rank.receives[rank.received].batch == (action.step, action.microbatch)
            rank.received += 1
        elif action.do is Do.SEND_STATE:
            message = self.message(r, len(rank.sends), action)
            message.sent, message.seconds = rank.clock, self.seconds(r, action)
            rank.sends.append(message)
            rank.enqueue(r % self.chain_groups, message)
        elif action.do is Do.POST_STATE:
            message = self.message(r - 1, len(rank.receives), action)
            message.posted = rank.clock
            rank.receives.append(message)
            rank.enqueue((r - 1) % self.chain_groups, message)
        elif action.do in (Do.SEND_ACTIVATION, Do.SEND_ACTIVATION_GRADIENT):
            arrival = rank.clock + self.seconds(r, action)
            self.arrivals[action.do, action.microbatch, action.section] = arrival
        elif action.do is Do.RELEASE_PARAMETER_GRADIENTS:
            rank.released = action
        elif action.do in (Do.RELEASE_REFINER_GRADIENTS, Do.AWAIT_REFINER_GRADIENTS):
            rank.releases_refiners = action.do is Do.RELEASE_REFINER_GRADIENTS
        elif action.do in GROUPS:
            rank.start_collective(action)
        elif PHASE[action.do] in COMPUTE:
            length = self.seconds(r, action)
            if length:
                rank.spans.append((rank.clock, rank.clock + length, action))
                rank.clock += length
        if action.do is Do.EXTRACTOR_BACKWARD and rank.released is not None:
            self.leave(rank)  # at the latest; buckets of a real backward leave during it
        if action.do in (Do.BACKWARD, Do.LEARN) and rank.releases_refiners:
            gradient = Action(Do.RELEASE_REFINER_GRADIENTS, refiner=action.refiner)
            rank.refiners_summed = max(rank.refiners_summed, rank.clock) + self.seconds(r, gradient)

    def leave(self, rank: Rank) -> None:
        assert rank.released is not None
        rank.start_collective(rank.released)
        rank.released = None

    def message(self, edge: int, k: int, action: Action) -> Message:
        """The k-th message of an edge, as both its ends see it."""
        if k == len(self.edges[edge]):
            self.edges[edge].append(Message((action.step, action.microbatch)))
        batch = self.edges[edge][k].batch
        assert batch == (action.step, action.microbatch), "send and receive are of different microbatches"
        return self.edges[edge][k]


def simulate(actions: Lists, seconds: Seconds = Durations(), *, chain_groups: int = 2) -> Timeline:
    """Run all ranks until they end. Raises DeadlockError with what each one is waiting for."""
    return Simulation(actions, seconds, chain_groups).run()
