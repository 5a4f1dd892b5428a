"""method=ddp: backpropagation with the whole cascade on every rank, each for its share of the batch."""

from torch import Tensor

from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.checks import filled
from sidpar.config.groups.refusals import unread
from sidpar.config.schema import Config
from sidpar.distributed.runtime import Runtime
from sidpar.engines.backpropagation.whole import BPEngine
from sidpar.engines.base import Engine
from sidpar.methods.base import Method, no_local_losses, with_parallel
from sidpar.planner.candidates import Candidate, WholeCandidate
from sidpar.planner.job import Job
from sidpar.schedules.placement import Copies
from sidpar.stages.stage import Stage


class DDPMethod(Method):
    """By DistributedDataParallel; on one rank, plain backpropagation."""

    name = "ddp"

    refuses = (
        unread(
            "with method=ddp",
            "method=ddp has the whole cascade on every rank",
            *("parallel.extractor", "parallel.schedule", "parallel.placement", "parallel.costs"),
            *("parallel.extractor_cost", "parallel.refiner_execution", "parallel.replicas", "parallel.auto"),
        ),
        no_local_losses("ddp"),
    )

    def decide(self, config: Config) -> Config:
        return with_parallel(config, **filled(config.parallel, microbatches=1))

    def candidate(self, config: Config, job: Job) -> Candidate:
        microbatches = min(config.parallel.microbatches or 1, len(job.share.taken))
        return whole_candidate(config, job, microbatches, "ddp", "ddp")

    def place(self, config: Config, cascade: Cascade, sample: Tensor, runtime: Runtime) -> Stage:
        copies = Copies(len(cascade.refiners), runtime.world_size)
        synchronised = config.parallel.sync_batchnorm
        return Stage(cascade, runtime, placement=copies, compute=config.compute, sync_batchnorm=synchronised)

    def engine(self, config: Config, stage: Stage, sample: Tensor) -> Engine:
        return BPEngine(
            stage,
            config.objective,
            microbatches=config.parallel.microbatches or 1,
            checkpointing=config.bp.checkpointing,
            deep_supervision=config.bp.deep_supervision,
            seed=config.run.seed,
        )


def whole_candidate(config: Config, job: Job, microbatches: int, method: str, schedule: str) -> WholeCandidate:
    """Backpropagation through the whole cascade on each rank."""
    checkpointing = config.bp.checkpointing
    name = f"{schedule}, checkpointing" if checkpointing else schedule
    return WholeCandidate(method, name, Copies(len(job.costs.refiners), job.num_ranks), microbatches)
