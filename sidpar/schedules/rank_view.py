"""The inputs of the schedules of local learning. No torch."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sidpar.config.groups.choices import RefinerExecution
from sidpar.schedules.placement import Placement

Reads = tuple[frozenset[int], ...]
"""Of each feature, the refiners that read it."""


@dataclass(frozen=True)
class RankView:
    """The placement seen from one rank of a cascade, M, the number of replicas R, how a rank's refiners are executed,
    what the rule declares (whether it trains the extractor, and whether training passes states between refiners), and
    which refiners read which features: a feature goes only to the ranks whose refiners read it."""

    placement: Placement
    rank: int
    microbatches: int
    trains_extractor: bool = True
    replicas: int = 1
    refiner_execution: RefinerExecution = "loop"
    passes_states: bool = True
    reads: Reads | None = None
    """None: every refiner reads every feature."""

    @cached_property
    def refiners(self) -> range:
        return self.placement.refiners(self.rank)

    @cached_property
    def previous(self) -> int | None:
        """The rank whose states this one waits for."""
        return self.rank - 1 if self.passes_states and self.rank > 0 else None

    @cached_property
    def next(self) -> int | None:
        """The rank that waits for this one's states."""
        return self.rank + 1 if self.passes_states and self.rank + 1 < self.placement.num_ranks else None

    @cached_property
    def hops_before(self) -> int:
        """How often the first state must be handed on until it is here."""
        return self.rank if self.passes_states else 0

    @cached_property
    def hops_behind(self) -> int:
        """How often a state of this rank must be handed on until the last rank has its own."""
        return self.placement.num_ranks - 1 - self.rank if self.passes_states else 0

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...] | None:
        """Of each feature, the ranks whose refiners read it; None: all ranks, every feature."""
        if self.reads is None:
            return None
        ranks = [(rank, frozenset(self.placement.refiners(rank))) for rank in range(self.placement.num_ranks)]
        return tuple(tuple(rank for rank, own in ranks if own & refiners) for refiners in self.reads)

    @cached_property
    def shares_features(self) -> bool:
        """Whether features, and so their gradients, travel between ranks."""
        if self.placement.num_ranks == 1 or self.placement.extractor == "replicated":
            return False
        stays = self.placement.extractor == "root" and self.readers is not None
        return not (stays and all(rank == 0 for ranks in self.readers or () for rank in ranks))

    @cached_property
    def extraction(self) -> Literal["replicated", "root", "sharded", "elsewhere"]:
        """How this rank comes to the features. Where those of a root extractor stay on rank 0, that rank does what it
        would do alone, and the others have nothing to do with them."""
        if self.placement.extractor == "root" and not self.shares_features:
            return "replicated" if self.rank == 0 else "elsewhere"
        return self.placement.extractor

    @cached_property
    def runs_extractor_backward(self) -> bool:
        """Whether this rank's extractor forward needs a graph.

        Where only the last refiner's loss trains it, the other ranks of a replicated extractor still run its backward,
        on zeros: the last rank takes as long anyway, and all see the same passes (batch norm counts them).
        """
        return self.trains_extractor and self.placement.holds_extractor(self.rank)

    @cached_property
    def reduces_parameters(self) -> bool:
        """Whether this rank and others hold the extractor, so that its parameter gradients are summed over them."""
        copies = self.replicas * (1 if self.placement.extractor == "root" else self.placement.num_ranks)
        return self.runs_extractor_backward and copies > 1

    @cached_property
    def reduces_refiners(self) -> bool:
        """Whether other replicas hold this rank's refiners, so that their gradients are summed over them."""
        return self.replicas > 1


def rank_views(
    placement: Placement,
    microbatches: int,
    *,
    trains_extractor: bool = True,
    replicas: int = 1,
    refiner_execution: RefinerExecution = "loop",
    passes_states: bool = True,
    reads: Reads | None = None,
) -> list[RankView]:
    """The views of all ranks of a cascade."""
    return [
        RankView(placement, rank, microbatches, trains_extractor, replicas, refiner_execution, passes_states, reads)
        for rank in range(placement.num_ranks)
    ]
