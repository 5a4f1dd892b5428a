"""How the work is divided among ranks, and in which order it is done."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from sidpar.config.groups.checks import fill_in
from sidpar.config.groups.choices import AnyExtractor, AnySchedule, Backend, DeviceKind, RefinerExecution
from sidpar.config.groups.refusals import less_than, not_positive, refuse, unread


@dataclass(frozen=True)
class ParallelConfig:
    """How the work is divided among ranks, and in which order it is done."""

    extractor: AnyExtractor | None = None
    """Where features are computed. sid: sharded (the default), by every rank for its share of the batch; root, by the
    first rank; replicated, by every rank for the whole batch. bp: cut (the default), layer by layer over the ranks;
    root."""
    schedule: AnySchedule | None = None
    """Order of the work. sid: fused (the default), two_phase, streaming. bp: naive, gpipe, 1f1b (the default),
    interleaved, zero_bubble, zbv, dualpipe_v."""
    microbatches: int | None = None
    """Number M of microbatches that a batch, or each replica's share of it, is cut into; by default 1, and 4 per rank
    for bp on several ranks."""
    replicas: int = 1
    """Number R of copies of the cascade. Each lies on K ranks and trains on 1/R of every batch, so R x K ranks must be
    started."""
    staleness: int | None = None
    """schedule=streaming: by how many steps the extractor's updates are late; by default 1; 0 is the schedule fused."""
    weight_prediction: bool | None = None
    """schedule=streaming with staleness: compute features with the weights that the extractor is predicted to have when
    their gradient is applied; by default false. Takes the memory of one more copy of the extractor's weights."""
    diagnose_every: int | None = None
    """schedule=streaming with staleness: steps between two comparisons of its gradients with the synchronous ones on
    the same batch (Proposition 5). Each comparison drains the stream and takes two more steps; by default 0, none."""
    refiner_execution: RefinerExecution | None = None
    """sid: loop (the default), a rank's refiners one after the other; stacked, all of them as one batched
    computation."""
    placement: Literal["count", "cost"] | list[int] | None = None
    """Refiners per rank. count (the default of sid): as even as possible; cost (the default of bp): so that the rank
    with the most work has as little as possible; or a list of numbers. For bp, the layers of a cut extractor count too,
    and some schedules have two sections per rank."""
    costs: list[float] | None = None
    """placement=cost: cost of each refiner, in any unit; by default measured on rank 0. With a cut extractor, the costs
    of its layers come first."""
    extractor_cost: float | None = None
    """placement=cost with parallel.costs and extractor=root: cost of the extractor in the same unit; by default 0."""
    sync_batchnorm: bool = False
    """sid, ddp: batch norm takes the statistics of all rows of a microbatch, also of those on other replicas, or on
    other ranks of ddp; in a sharded extractor, of the whole batch. Each batch norm sends a small message in its forward
    and one in its backward."""
    auto: bool = False
    """sid: choose extractor, schedule (fused, or streaming with staleness 1), microbatches and placement by a plan,
    after a short calibration on the ranks of the job. Those that are set are kept. config.yaml in the run folder holds
    the choice."""
    device: DeviceKind = "auto"
    """auto: a GPU if there is one, else the CPU."""
    backend: Backend = "auto"
    """auto: nccl where every rank has a GPU of its own, else gloo."""
    init_timeout: float = 300.0
    """Seconds that ranks wait for each other at the start."""
    step_timeout: float = 100.0
    """Seconds that a rank waits for one message before it fails. Must cover the first step, which may compile."""

    UNITS = MappingProxyType(
        {
            "microbatches": "microbatches",
            "replicas": "replicas",
            **dict.fromkeys(("staleness", "diagnose_every"), "steps"),
            "placement": "refiners per rank, of a list",
            "costs": "any, the same for all",
            "extractor_cost": "that of parallel.costs",
            **dict.fromkeys(("init_timeout", "step_timeout"), "seconds"),
        }
    )
    REFUSALS = (
        *less_than(1, "parallel.microbatches", "parallel.replicas"),
        unread(
            "unless parallel.schedule=streaming",
            "only parallel.schedule=streaming reads it",
            "parallel.staleness",
            when=lambda parallel: parallel.schedule != "streaming",
        ),
        *less_than(0, "parallel.staleness"),
        unread(
            "unless parallel.staleness is at least 1",
            "without staleness nothing differs",
            "parallel.diagnose_every",
            "parallel.weight_prediction",
            when=lambda parallel: not parallel.staleness,
        ),
        *less_than(0, "parallel.diagnose_every"),
        *not_positive("parallel.init_timeout", "parallel.step_timeout"),
    )

    def __post_init__(self) -> None:
        if self.schedule == "streaming":
            fill_in(self, staleness=1)
            if self.staleness:
                fill_in(self, diagnose_every=0, weight_prediction=False)
        refuse(self, self.REFUSALS)
