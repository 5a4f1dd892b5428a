"""What an engine of local learning keeps for all batches."""

from dataclasses import dataclass

from sidpar.messages.gradients import GradientBuckets
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
