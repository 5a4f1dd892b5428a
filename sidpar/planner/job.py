"""The job that a plan is made for: the network's costs, the batch and the ranks. No torch."""

from dataclasses import dataclass
from functools import cached_property

from sidpar.config.groups.choices import RefinerExecution
from sidpar.schedules.batching import Share
from sidpar.schedules.rank_view import Reads
from sidpar.simulation.costs import Costs
from sidpar.simulation.lower_bounds import Times


@dataclass(frozen=True)
class Job:
    """What is to be trained, and on how many ranks."""

    costs: Costs
    batch_size: int
    """The global batch size B."""
    num_ranks: int
    """The number of ranks of all replicas together."""
    num_replicas: int = 1
    """The number of replicas R, for local learning."""
    rule: str = "sid"
    """The name of the local rule. The next four fields are its properties that decide about times."""
    trains_extractor: bool = True
    """Whether local learning trains the extractor; backpropagation always does."""
    passes_states: bool = True
    """Whether local learning passes states from refiner to refiner."""
    loss_reads_features: bool = False
    """Whether the losses of local learning do, so that every feature goes to every rank."""
    splits_batches: bool = True
    """Whether local learning may cut a batch into microbatches."""
    copies: int = 1
    """How many rows local learning makes of each row."""
    refiner_execution: RefinerExecution = "loop"
    state_per_byte: float = 2.0
    """The optimizer's state, in bytes per byte of trained parameters."""
    device_memory: float | None = None
    """Bytes that a rank may hold; None for no limit."""

    @property
    def cascade_size(self) -> int:
        """The number of ranks K of one cascade."""
        return self.num_ranks // self.num_replicas

    @cached_property
    def times(self) -> Times:
        """The costs with their sums over refiners, which bounds ask for many times."""
        return Times(self.costs)

    @cached_property
    def reads(self) -> Reads | None:
        """Which refiners read which features, as local learning takes it; None: all."""
        whole = self.loss_reads_features or self.refiner_execution == "stacked" or self.costs.reads is None
        return None if whole else tuple(map(frozenset, self.costs.reads or ()))

    @cached_property
    def share(self) -> Share:
        """Of the first replica, which is the largest."""
        return Share(self.batch_size, self.num_replicas, 0)
