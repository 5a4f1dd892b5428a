"""What the schedules of SID are functions of. No torch."""

from dataclasses import dataclass
from functools import cached_property

from sidpar.config.groups.choices import ExtractorUpdate, RefinerExecution
from sidpar.schedules.placement import Placement


@dataclass(frozen=True)
class RankView:
    """The placement seen from one rank of a cascade, M, what the objective trains, the number of replicas R, and how a
    rank's refiners are executed."""

    placement: Placement
    rank: int
    microbatches: int
    extractor_update: ExtractorUpdate = "all"
    replicas: int = 1
    refiner_execution: RefinerExecution = "loop"

    @cached_property
    def refiners(self) -> range:
        return self.placement.refiners(self.rank)

    @cached_property
    def previous(self) -> int | None:
        return self.rank - 1 if self.rank > 0 else None

    @cached_property
    def next(self) -> int | None:
        return self.rank + 1 if self.rank + 1 < self.placement.num_ranks else None

    @cached_property
    def shares_features(self) -> bool:
        """Whether features, and so their gradients, travel between ranks."""
        return self.placement.num_ranks > 1 and self.placement.extractor != "replicated"

    @cached_property
    def trains_extractor(self) -> bool:
        return self.extractor_update != "frozen"

    @cached_property
    def runs_extractor_backward(self) -> bool:
        """Whether this rank's extractor forward needs a graph.

        With `final`, ranks of a replicated extractor whose refiners send it no gradient still run its backward, on
        zeros: the last rank takes as long anyway, and all replicas see the same passes (batch norm counts them).
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
    extractor_update: ExtractorUpdate = "all",
    replicas: int = 1,
    refiner_execution: RefinerExecution = "loop",
) -> list[RankView]:
    """The views of all ranks of a cascade."""
    ranks = range(placement.num_ranks)
    return [RankView(placement, rank, microbatches, extractor_update, replicas, refiner_execution) for rank in ranks]
