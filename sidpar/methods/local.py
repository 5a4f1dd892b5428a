"""method=local: the same training as method=sid in one process, as a reference."""

import dataclasses

from torch import Tensor

from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.parallel import ParallelConfig
from sidpar.config.groups.refusals import unread
from sidpar.config.schema import Config
from sidpar.distributed.runtime import Runtime
from sidpar.engines.base import Engine
from sidpar.engines.local import LocalEngine
from sidpar.methods.base import Method, no_backpropagation
from sidpar.planner.candidates import Candidate, LocalCandidate
from sidpar.planner.job import Job
from sidpar.rules import rule_of
from sidpar.schedules.placement import Placement
from sidpar.stages.check import check
from sidpar.stages.stage import Stage


class LocalMethod(Method):
    """One process, whose engine is written for reading."""

    name = "local"
    learns_locally = True

    refuses = (
        unread(
            "with method=local",
            "method=local runs in one process",
            *(f"parallel.{field.name}" for field in dataclasses.fields(ParallelConfig) if field.name != "device"),
        ),
        no_backpropagation("local"),
    )

    def decide(self, config: Config) -> Config:
        return config

    def candidate(self, config: Config, job: Job) -> Candidate:
        return LocalCandidate("fused", Placement((len(job.costs.refiners),), "replicated"), 1, rule=job.rule)

    def place(self, config: Config, cascade: Cascade, sample: Tensor, runtime: Runtime) -> Stage:
        return Stage(cascade, runtime, compute=config.compute)

    def engine(self, config: Config, stage: Stage, sample: Tensor) -> Engine:
        rule = rule_of(config.objective)
        rule.check_states(check(stage, sample))
        return LocalEngine(stage, rule, seed=config.run.seed)
