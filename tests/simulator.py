"""Runs the action lists of all ranks on a clock, with messages as NCCL has them, to test schedules without processes.

A message between two ranks is matched by order, and takes place once its send has started and its receive is
posted. Collectives match by order, too: the k-th of one rank with the k-th of every other, one after the other.
"""

from dataclasses import dataclass, field

from sidpar.placement import Placement
from sidpar.schedule import SCHEDULES, Action, Do, ExtractorUpdate, RankView, ScheduleName, inference

COLLECTIVES = (Do.BROADCAST_FEATURES, Do.GATHER_FEATURES, Do.REDUCE_FEATURE_GRADIENT, Do.REDUCE_PARAMETER_GRADIENTS)
AWAITS = {
    Do.AWAIT_FEATURES: (Do.BROADCAST_FEATURES, Do.GATHER_FEATURES),
    Do.AWAIT_FEATURE_GRADIENT: (Do.REDUCE_FEATURE_GRADIENT,),
    Do.AWAIT_PARAMETER_GRADIENTS: (Do.REDUCE_PARAMETER_GRADIENTS,),
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
    log: list[list[Action]] = field(default_factory=list)

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


def simulate(actions: Lists, durations: Durations = Durations()) -> Timeline:  # noqa: B008
    """Run all ranks until they end. Raises DeadlockError with what each one is waiting for."""
    ranks = range(len(actions))
    clock = [0.0] * len(actions)
    position = [0] * len(actions)
    sent: list[list[tuple[float, int | None]]] = [[] for _ in ranks]
    posted: list[list[tuple[float, int | None]]] = [[] for _ in ranks]
    received = [0] * len(actions)
    collective: list[list[tuple[float, Action]]] = [[] for _ in ranks]
    spans: list[list[tuple[float, float, Action]]] = [[] for _ in ranks]

    def delivered(receiver: int, k: int) -> float | None:
        """When the k-th message to `receiver` is there."""
        if k >= len(sent[receiver - 1]) or k >= len(posted[receiver]):
            return None
        assert sent[receiver - 1][k][1] == posted[receiver][k][1], "send and receive are of different microbatches"
        return max(sent[receiver - 1][k][0], posted[receiver][k][0])

    def collected(k: int) -> float | None:
        """When the k-th collective, and with it all before, is over."""
        if any(k >= len(collective[r]) for r in ranks):
            return None
        for j in range(k + 1):
            assert len({(collective[r][j][1].do, collective[r][j][1].microbatch) for r in ranks}) == 1, (
                f"collective {j} differs between ranks"
            )
        return max(collective[r][j][0] for r in ranks for j in range(k + 1))

    def ready(r: int, action: Action) -> float | None:
        """When `action` may go on, or None while nobody can tell."""
        if action.do is Do.AWAIT_STATE:
            return delivered(r, received[r])
        if action.do is Do.AWAIT_SENT:
            times = [delivered(r + 1, k) for k in range(len(sent[r]))]
        elif action.do in AWAITS:
            mine = [
                k
                for k, (_, started) in enumerate(collective[r])
                if started.do in AWAITS[action.do] and action.microbatch in (None, started.microbatch)
            ]
            times = [collected(k) for k in mine]
        else:
            return clock[r]
        return None if None in times else max([clock[r], *(time for time in times if time is not None)])

    while any(position[r] < len(actions[r]) for r in ranks):
        progress = False
        for r in ranks:
            while position[r] < len(actions[r]):
                action = actions[r][position[r]]
                when = ready(r, action)
                if when is None:
                    break
                progress = True
                clock[r] = max(clock[r], when)
                if action.do is Do.AWAIT_STATE:
                    received[r] += 1
                elif action.do is Do.SEND_STATE:
                    sent[r].append((clock[r], action.microbatch))
                elif action.do is Do.POST_STATE:
                    posted[r].append((clock[r], action.microbatch))
                elif action.do in COLLECTIVES:
                    collective[r].append((clock[r], action))
                if length := durations.of(action):
                    spans[r].append((clock[r], clock[r] + length, action))
                    clock[r] += length
                position[r] += 1
        if not progress:
            stuck = {r: str(actions[r][position[r]]) for r in ranks if position[r] < len(actions[r])}
            raise DeadlockError(f"deadlock: {stuck}")
    assert len({len(started) for started in collective}) == 1, "ranks start different numbers of collectives"
    return Timeline(spans, clock)
