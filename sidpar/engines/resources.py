"""What an engine of local learning keeps for all batches."""

from dataclasses import dataclass

from sidpar.messages.gradients import GradientBuckets
from sidpar.messages.statistics import Statistics
from sidpar.messages.transport import Transport
from sidpar.rules.base import LocalRule
from sidpar.stages.stacks import Stacks
from sidpar.stages.stage import Stage


@dataclass(frozen=True)
class Resources:
    """What the executions of all batches share."""

    stage: Stage
    rule: LocalRule
    transport: Transport | None
    """None for a single process."""
    refiner_buckets: GradientBuckets | None
    """None where this rank's refiners have no replicas."""
    stacks: Stacks | None
    """None where refiners run one after the other."""
    seed: int

    def statistics(self, **counts: bool) -> dict[str, Statistics]:
        """With whom batch norms share their statistics in one batch, by kind of part, if with anybody; `counts` says
        for each kind whether the rows of this rank count."""
        return statistics_of(self.stage, self.transport, **counts)


def statistics_of(stage: Stage, transport: Transport | None, **counts: bool) -> dict[str, Statistics]:
    """The same of any stage."""
    shared = stage.shared_norms
    if not shared:
        return {}
    assert transport is not None, "a world of one process shares no statistics"
    return {kind: Statistics(transport, norms.group, counts=counts[kind]) for kind, norms in shared.items()}


def send_statistics_first(stage: Stage, transport: Transport | None) -> None:
    """The messages of all batch norms that share their statistics, once in each size, of zeros. All ranks call it."""
    for kind, statistics in statistics_of(stage, transport, extractor=True, refiners=True).items():
        statistics.send_first(stage.shared_norms[kind].channels())
