"""The interface of training methods: all that commands, training and plans know of a method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from sidpar import rules
from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.refusals import Refusal, refuse, unread
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


def no_local_losses(method: str) -> Refusal:
    """What backpropagation through the whole cascade does not read."""
    keys = [f"objective.{name}" for name in ("alpha", "extractor_update", "rule", "options")]
    return unread(f"with method={method}", f"method={method} has no local losses", *keys)


def no_backpropagation(method: str) -> Refusal:
    """What methods do not read whose refiners learn by a rule."""
    keys = ("bp.checkpointing", "bp.deep_supervision")
    return unread(f"with method={method}", "only method=bp and method=ddp read it", *keys)


COSTS = (
    unread(
        "unless parallel.placement=cost",
        "only parallel.placement=cost reads it",
        "parallel.costs",
        when=lambda parallel: parallel.placement != "cost",
    ),
    unread(
        "unless parallel.costs is given and parallel.extractor=root",
        "only parallel.costs with parallel.extractor=root reads it",
        "parallel.extractor_cost",
        when=lambda parallel: parallel.costs is None or parallel.extractor != "root",
    ),
)
"""Costs that no placement would read, of `parallel` once it is decided."""


class Method(ABC):
    """How a configuration is trained. A method is a file of this package and a line in its registry."""

    name: ClassVar[str]
    learns_locally: ClassVar[bool] = False
    """Whether refiners learn by a local rule."""
    offers: ClassVar[Mapping[str, Sequence[str]]] = {}
    """For settings of `parallel` of which it does not offer all choices, those that it offers."""
    refuses: ClassVar[Sequence[Refusal]] = ()
    """What else it refuses, before defaults are filled in."""

    def complete(self, config: Config) -> Config:
        """The configuration with all defaults of this method filled in, as a new object. Raises UsageError for settings
        that this method does not offer, or that would have no effect."""
        for setting, choices in self.offers.items():
            value = getattr(config.parallel, setting)
            if value not in (None, *choices):
                raise UsageError(
                    f"method={self.name} does not offer parallel.{setting}={value}; choose one of {list(choices)}"
                )
        for refusal in self.refuses:
            refusal.check(getattr(config, refusal.group))
        config = self.decide(config)
        refuse(config.parallel, COSTS)
        return with_local_rule(config) if self.learns_locally else config

    @abstractmethod
    def decide(self, config: Config) -> Config:
        """The configuration with the defaults of the settings that this method reads."""

    def check_ranks(self, config: Config, ranks: int) -> None:
        """Raises UsageError if the cascade cannot be placed on so many ranks in all; called before anything is
        measured."""
        return

    def in_words(self, config: Config, ranks: int) -> str:
        """What runs on so many ranks, for people."""
        parts = f", M = {config.parallel.microbatches}" if (config.parallel.microbatches or 1) > 1 else ""
        return f"{config.learning}, {'one process' if ranks == 1 else f'a copy on each of {ranks} ranks'}{parts}"

    @abstractmethod
    def candidate(self, config: Config, job: Job) -> Candidate:
        """The candidate of a plan that corresponds to a configuration. Raises UsageError as training would."""

    def expected(self, config: Config, job: Job) -> Option:
        """What a plan predicts for a configuration as it is."""
        candidate = self.candidate(config, job)
        return evaluate(job, candidate, candidate.bound(job), simulate=candidate.actions(job) <= MAX_ACTIONS)

    def choose(
        self, config: Config, build: Callable[[], Cascade], sample: Tensor, runtime: Runtime
    ) -> tuple[Config, dict[str, Any]]:
        """The configuration with the settings that are chosen on the ranks of the job, and the prediction for the
        choice. All ranks call it, and get the same.

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
        """The engine that executes the steps. Nothing after this depends on the method."""


def with_local_rule(config: Config) -> Config:
    """The configuration with the defaults of the rule's options. Raises UsageError if batches are cut but the rule's
    loss is not a sum over rows, or if the network has no beliefs to learn from."""
    parallel = config.parallel
    rule_of(config.objective).check_parts(microbatches=parallel.microbatches or 1, replicas=parallel.replicas)
    if not forms_beliefs(config.model):
        others = " or ".join(name for name, model in MODELS.items() if model.has_beliefs)
        raise UsageError(
            f"model.name={config.model.name} has a belief at its end only, so its blocks cannot learn locally: use "
            f"method=bp or ddp, or model.name={others}"
        )
    return replace(config, objective=rules.complete(config.objective))


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
