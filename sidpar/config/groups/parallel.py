"""Who does what, and when."""

from dataclasses import dataclass
from typing import Literal

from sidpar.config.groups.checks import at_least, fill_in, positive, without_effect
from sidpar.config.groups.choices import AnyExtractor, AnySchedule, Backend, DeviceKind, RefinerExecution


@dataclass(frozen=True)
class ParallelConfig:
    """Who does what, and when."""

    extractor: AnyExtractor | None = None
    """Where features are computed. sid: replicated, root, sharded (the default). bp: root, or cut over the ranks layer
    by layer (the default)."""
    schedule: AnySchedule | None = None
    """Order of the work. sid: fused (the default), two_phase, streaming. bp: naive, gpipe, 1f1b (the default),
    interleaved, zero_bubble, zbv, dualpipe_v."""
    microbatches: int | None = None
    """M: microbatches per batch, of each replica's share; by default 1, and 4 per rank for bp on several ranks."""
    replicas: int = 1
    """R: copies of the cascade, each on K ranks and with 1/R of every batch; R x K ranks must be started."""
    staleness: int | None = None
    """schedule=streaming: how many steps late the extractor's updates are, by default 1; 0 is fused."""
    weight_prediction: bool | None = None
    """schedule=streaming with staleness: make features with the weights that the extractor is expected to have when
    their gradient is applied; by default false. Costs its weights once more."""
    diagnose_every: int | None = None
    """schedule=streaming with staleness: steps between two rows that compare its gradients with the synchronous ones on
    the same batch (Proposition 5); each costs a drain and two steps. 0, the default, for none."""
    refiner_execution: RefinerExecution | None = None
    """sid: loop, one refiner after the other (the default); stacked, all of a rank's as one batched computation."""
    placement: Literal["count", "cost"] | list[int] | None = None
    """Refiners per rank: count, as even as possible (the default of sid); cost, with the least maximum load (of bp); or
    as listed. For bp, layers of a cut extractor count too, and some schedules have two sections per rank."""
    costs: list[float] | None = None
    """placement=cost: cost of each refiner (before them, of each layer of a cut extractor) in any unit; by default
    measured on rank 0."""
    extractor_cost: float | None = None
    """placement=cost with given costs, extractor=root: cost of the extractor in the same unit; by default 0."""
    sync_batchnorm: bool = False
    """sid, ddp: batch norms take the statistics of all rows of a microbatch, also of those that other replicas, or
    other ranks of ddp, compute; in a sharded extractor, of the whole batch. Each costs a small message in its forward
    and one in its backward."""
    auto: bool = False
    """sid: choose what is left open of extractor, schedule (fused, or streaming with a staleness of 1), microbatches
    and placement by a plan, after a short calibration on the ranks of the job. The run folder tells what was chosen."""
    device: DeviceKind = "auto"
    """auto: CUDA if there is any."""
    backend: Backend = "auto"
    """auto: nccl where every rank has a GPU of its own, else gloo."""
    init_timeout: float = 300.0
    """Seconds for all ranks to appear and agree."""
    step_timeout: float = 100.0
    """Seconds that one message may take; the first step, which may compile, counts too."""

    def __post_init__(self) -> None:
        if self.microbatches is not None:
            at_least("parallel.microbatches", self.microbatches, 1)
        at_least("parallel.replicas", self.replicas, 1)
        if self.schedule == "streaming":
            fill_in(self, staleness=1)
            at_least("parallel.staleness", self.staleness, 0)
        else:
            without_effect("parallel", self, ["staleness"], "only parallel.schedule=streaming reads it")
        if self.staleness:
            fill_in(self, diagnose_every=0, weight_prediction=False)
            at_least("parallel.diagnose_every", self.diagnose_every, 0)
        else:
            names = ["diagnose_every", "weight_prediction"]
            without_effect("parallel", self, names, "without staleness nothing differs")
        positive("parallel.init_timeout", self.init_timeout)
        positive("parallel.step_timeout", self.step_timeout)
