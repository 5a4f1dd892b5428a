"""What a method of training says, and all that commands, training and plans know of one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from sidpar import rules
from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.checks import without_effect
from sidpar.config.schema import Config
from sidpar.distributed.runtime import Runtime
from sidpar.engines.base import Engine
from sidpar.errors import UsageError
from sidpar.models import MODELS, forms_beliefs
from sidpar.planner.candidates import Candidate
from sidpar.planner.job import Job
from sidpar.planner.search import MAX_ACTIONS, Option, evaluate
from sidpar.rules import rule_of
from sidpar.simulation.costs import Costs
from sidpar.stages.stage import Stage


class Method(ABC):
    """How a configuration is trained. A method is a file of this package and a line in its registry."""

    name: ClassVar[str]
    learns_locally: ClassVar[bool] = False
    """Whether refiners learn by a local rule."""

    @abstractmethod
    def complete(self, config: Config) -> Config:
        """With all settings decided that were left open, as a new object. Raises UsageError for settings that this
        method does not have, or that would have no effect."""

    def check_ranks(self, config: Config, ranks: int) -> None:
        """Raises UsageError if the cascade cannot lie on so many ranks in all, before anything is measured."""
        return

    @abstractmethod
    def candidate(self, config: Config, job: Job) -> Candidate:
        """What a configuration runs, as one way among those of a plan. Raises UsageError as training would."""

    def expected(self, config: Config, job: Job) -> Option:
        """What a plan expects of a configuration as it is."""
        candidate = self.candidate(config, job)
        return evaluate(job, candidate, candidate.bound(job), simulate=candidate.actions(job) <= MAX_ACTIONS)

    def choose(
        self, config: Config, build: Callable[[], Cascade], sample: Tensor, runtime: Runtime
    ) -> tuple[Config, dict[str, Any]]:
        """With all settings chosen that only the ranks of the job can choose, and what is expected of the choice; the
        same on all ranks, which all call it.

        Args:
            build: makes the network.
            sample: images [n, channels, H, W] for it.
        """
        return config, {}

    @abstractmethod
    def place(self, config: Config, cascade: Cascade, sample: Tensor, runtime: Runtime) -> Stage:
        """This rank's share of the cascade. Raises UsageError, the same on every rank, if it cannot be placed."""

    @abstractmethod
    def engine(self, config: Config, stage: Stage, sample: Tensor) -> Engine:
        """What executes the steps; from here on nobody asks which method it is."""


def check_offered(config: Config, setting: str, choices: Sequence[str]) -> None:
    """Refuse what a method does not have of a setting of `parallel`."""
    value = getattr(config.parallel, setting)
    if value not in (None, *choices):
        raise UsageError(f"method={config.method} has no parallel.{setting}={value}; choose one of {list(choices)}")


def check_costs_are_read(config: Config) -> None:
    """Refuse costs that no placement would read."""
    parallel = config.parallel
    if parallel.placement != "cost":
        without_effect("parallel", parallel, ["costs"], "only parallel.placement=cost reads it")
    if parallel.costs is None or parallel.extractor != "root":
        reason = "only given parallel.costs with parallel.extractor=root read it"
        without_effect("parallel", parallel, ["extractor_cost"], reason)


def with_local_rule(config: Config) -> Config:
    """With the rule's options decided. Refuses what has no effect where refiners learn by a rule, parts of a batch that
    the rule cannot learn from, and networks without beliefs to learn from."""
    reason = f"method={config.method} is not bp or ddp"
    without_effect("bp", config.bp, ["checkpointing", "deep_supervision"], reason)
    parallel = config.parallel
    rule_of(config.objective).check_parts(microbatches=parallel.microbatches or 1, replicas=parallel.replicas)
    if not forms_beliefs(config.model):
        others = " or ".join(name for name, model in MODELS.items() if model.has_beliefs)
        raise UsageError(
            f"model.name={config.model.name} has a belief at its end only, so its blocks have nothing to learn from "
            f"locally: use method=bp or ddp, or model.name={others}"
        )
    return replace(config, objective=rules.complete(config.objective))


def check_one_loss(config: Config) -> None:
    """Refuse what has no effect on backpropagation through the whole cascade."""
    reason = f"method={config.method} has no local losses"
    without_effect("objective", config.objective, ["alpha", "extractor_update", "rule", "options"], reason)


def job_of(config: Config, costs: Costs, num_ranks: int, device_memory: float | None) -> Job:
    """What a configuration trains, on so many ranks in all."""
    optim = config.optim
    momentum = 1.0 if optim.momentum else 0.0
    rule = rule_of(config.objective)
    return Job(
        costs,
        config.data.batch_size,
        num_ranks,
        config.parallel.replicas,
        rule=rule.name,
        trains_extractor=rule.trains_extractor and costs.extractor_parameter_bytes > 0,
        passes_states=rule.passes_states,
        loss_reads_features=rule.loss_reads_features,
        splits_batches=rule.sums_over_rows,
        copies=rule.copies,
        refiner_execution=config.parallel.refiner_execution or "loop",
        state_per_byte=momentum if optim.name == "sgd" else 2.0,
        device_memory=device_memory,
    )


def with_parallel(config: Config, **settings: Any) -> Config:
    """The same with other settings of `parallel`."""
    return replace(config, parallel=replace(config.parallel, **settings))
