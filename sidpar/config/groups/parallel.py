"""How the work is divided among ranks, and in which order it is done."""

from dataclasses import dataclass
from typing import Literal

from sidpar.config.groups.checks import at_least, fill_in, positive, without_effect
from sidpar.config.groups.choices import AnyExtractor, AnySchedule, Backend, DeviceKind, RefinerExecution


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
