"""The settings of a run, as dataclasses; `command_line.py` fills them from defaults, YAML and flags. No torch.

A wrong key, type or range is refused, and so is a setting that would have no effect. What only the network or the
world can tell (L >= K, one alpha per refiner, ...) is checked where these are first known, before any message.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from sidpar.config.groups.bp import BPConfig
from sidpar.config.groups.choices import CutExtractor, ExtractorPlacement, Method, PipelineName, ScheduleName
from sidpar.config.groups.compute import Compute
from sidpar.config.groups.data import DataConfig
from sidpar.config.groups.model import DEFAULT_MODEL, ModelConfig
from sidpar.config.groups.objective import Objective
from sidpar.config.groups.optim import OptimConfig
from sidpar.config.groups.parallel import ParallelConfig
from sidpar.config.groups.run import CheckpointConfig, RunConfig
from sidpar.config.groups.validation import fill_in, without_effect
from sidpar.errors import UsageError


@dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: Objective = field(default_factory=Objective)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    compute: Compute = field(default_factory=Compute)
    bp: BPConfig = field(default_factory=BPConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    method: Method = "sid"
    """sid: refiners on ranks, each learning by its own loss; local: the same in one process, the oracle; bp:
    backpropagation in one process, or by a pipeline over ranks; ddp: the same, every rank a share of the batch."""

    def __post_init__(self) -> None:
        check = {"sid": self._check_sid, "local": self._check_local, "bp": self._check_bp, "ddp": self._check_ddp}
        if self.model.builder is None:
            fill_in(self.model, name=DEFAULT_MODEL)  # here, where it no longer is the parser's default
        check[self.method]()
        if self.model.name in ("wide_mlp", "plain_mlp"):
            without_effect(
                "compute", self.compute, ["channels_last"], f"model.name={self.model.name} has no convolutions"
            )

    def _check_sid(self) -> None:
        self._offers("schedule", get_args(ScheduleName))
        self._offers("extractor", get_args(ExtractorPlacement))
        fill_in(self.parallel, refiner_execution="loop")
        if self.parallel.auto:
            self._leaves_open()
        else:
            fill_in(self.parallel, extractor="sharded", schedule="fused", microbatches=1, placement="count")
        self._reads_costs()
        self._learns_locally()

    def _check_local(self) -> None:
        keys = [f.name for f in dataclasses.fields(ParallelConfig) if f.name != "device"]
        without_effect("parallel", self.parallel, keys, "method=local is one process")
        self._learns_locally()

    def _check_bp(self) -> None:
        self._offers("schedule", get_args(PipelineName))
        self._offers("extractor", get_args(CutExtractor))
        without_effect("parallel", self.parallel, ["refiner_execution"], "method=bp has one loss for all refiners")
        fill_in(self.parallel, extractor="cut", schedule="1f1b", placement="cost")
        reason = "method=bp has no replicas of its pipelines; method=ddp has one on every rank"
        without_effect("parallel", self.parallel, ["replicas"], reason)
        without_effect("parallel", self.parallel, ["auto"], "only method=sid chooses for itself")
        self._reads_costs()
        self._has_one_loss()

    def _check_ddp(self) -> None:
        keys = ["extractor", "schedule", "placement", "costs", "extractor_cost", "refiner_execution", "replicas"]
        keys.append("auto")
        without_effect("parallel", self.parallel, keys, "method=ddp has the whole cascade on every rank")
        fill_in(self.parallel, microbatches=1)
        self._has_one_loss()

    def _offers(self, name: str, choices: Sequence[str]) -> None:
        value = getattr(self.parallel, name)
        if value not in (None, *choices):
            raise UsageError(f"method={self.method} has no parallel.{name}={value}; choose one of {list(choices)}")

    def _leaves_open(self) -> None:
        parallel = self.parallel
        without_effect("parallel", parallel, ["costs", "extractor_cost"], "parallel.auto=true measures the costs")
        if None not in (parallel.extractor, parallel.schedule, parallel.microbatches, parallel.placement):
            raise UsageError(
                "parallel.auto=true has nothing to choose, because parallel.extractor, schedule, microbatches and "
                "placement are all given: remove it, or one of them"
            )

    def _reads_costs(self) -> None:
        parallel = self.parallel
        if parallel.placement != "cost":
            without_effect("parallel", parallel, ["costs"], "only parallel.placement=cost reads it")
        if parallel.costs is None or parallel.extractor != "root":
            reason = "only given parallel.costs with parallel.extractor=root read it"
            without_effect("parallel", parallel, ["extractor_cost"], reason)

    def _learns_locally(self) -> None:
        without_effect("bp", self.bp, ["checkpointing", "deep_supervision"], f"method={self.method} is not bp or ddp")
        if self.model.name in ("plain_cnn", "plain_mlp"):
            raise UsageError(
                f"model.name={self.model.name} has a belief at its end only, so its blocks have nothing to learn from "
                "locally: use method=bp or ddp, or model.name=simple_cnn or wide_mlp"
            )

    def _has_one_loss(self) -> None:
        without_effect(
            "objective",
            self.objective,
            ["alpha", "extractor_update"],
            f"method={self.method} has no local losses",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what is written to the run folder and compared between ranks."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, Any]:
        """The same by full names: `optim.lr`."""
        return _flat(self.to_dict())

    def differences(self, other: dict[str, Any]) -> list[str]:
        """In which settings that decide what is learned another configuration, as `to_dict` gave it, differs."""
        here, there = self.flat(), _flat(other)
        return [
            f"{key}: {there[key]!r} there, {value!r} here"
            for key, value in here.items()
            if key in there and there[key] != value and not _is_free(key)
        ]


FREE_GROUPS = ("parallel", "checkpoint", "run")
FREE = ("data.root", "data.download", "data.eval_batch_size", "data.workers", "compute.compile")
"""What a run that is continued may have otherwise than at its start: who does the work, and how it is recorded."""


def _is_free(key: str) -> bool:
    return key in FREE or (key.split(".")[0] in FREE_GROUPS and key != "run.seed")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{"optim": {"lr": 1}} to {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat
