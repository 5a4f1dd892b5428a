"""Everything that lists of actions are made from, for tests of what all of them obey."""

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from sidpar.schedules.actions import Action, Do
from sidpar.schedules.cut import make_cut
from sidpar.schedules.pipelines import gpipe, one_f_one_b, with_messages
from sidpar.schedules.placement import Placement
from sidpar.schedules.rank_view import RankView
from sidpar.schedules.streaming import stream
from sidpar.schedules.synchronous import SCHEDULES, inference

Lists = list[list[Action]]
PIPELINES: dict[str, Any] = {"gpipe": gpipe, "1f1b": one_f_one_b}
SYNCHRONOUS: dict[str, Any] = SCHEDULES | {"inference": inference}


@dataclass(frozen=True)
class Setup:
    """One of everything, but for the number of replicas; refiners are placed unevenly."""

    schedule: str
    counts: tuple[int, ...]
    microbatches: int
    extractor: Any
    trains_extractor: bool
    passes_states: bool
    execution: Any
    staleness: int
    steps: int
    reads: Any = None

    @property
    def placement(self) -> Placement:
        return Placement(self.counts, self.extractor)

    @property
    def ranks(self) -> int:
        return len(self.counts)

    @property
    def has_chain(self) -> bool:
        """Whether states are handed on: in training by some rules only, in inference by all."""
        return self.passes_states or self.schedule == "inference"

    @property
    def batches(self) -> range:
        return range(self.steps if self.schedule == "streaming" else 1)

    def view(self, rank: int, replicas: int = 1) -> RankView:
        return RankView(
            self.placement,
            rank,
            self.microbatches,
            self.trains_extractor,
            replicas,
            self.execution,
            self.passes_states,
            self.reads,
        )

    def lists(self, replicas: int = 1) -> Lists:
        if self.schedule in PIPELINES:
            counts = list(self.counts)
            cut = make_cut("gpipe", "root", self.ranks, [1.0], [1.0] * sum(counts), counts=counts)
            work = [PIPELINES[self.schedule](cut, rank, self.microbatches) for rank in range(self.ranks)]
            return [list(with_messages(cut, mine)) for mine in work]
        views = [self.view(rank, replicas) for rank in range(self.ranks)]
        if self.schedule == "streaming":
            return [list(stream(view, self.staleness, self.steps)) for view in views]
        return [list(SYNCHRONOUS[self.schedule](view)) for view in views]


def setups(schedules: list[str], executions: list[str]) -> st.SearchStrategy[Setup]:
    """Any of them."""
    return st.builds(
        Setup,
        st.sampled_from(schedules),
        st.lists(st.integers(1, 3), min_size=1, max_size=6).map(tuple),
        st.integers(1, 7),
        st.sampled_from(["replicated", "root", "sharded"]),
        st.booleans(),
        st.booleans(),
        st.sampled_from(executions),
        st.integers(1, 4),
        st.integers(1, 6),
        st.sampled_from([None, (frozenset({0}),), (frozenset({0}), frozenset({1}))]),
    )


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
            Do.LEARN: self.forward + self.backward,
            Do.EXTRACT: self.extract,
            Do.EXTRACTOR_BACKWARD: self.extractor_backward,
            Do.SECTION_FORWARD: self.forward,
            Do.SECTION_BACKWARD: self.backward,
            Do.SECTION_INPUT_BACKWARD: self.backward / 2,
            Do.SECTION_WEIGHT_BACKWARD: self.backward / 2,
        }.get(action.do, 0.0)
