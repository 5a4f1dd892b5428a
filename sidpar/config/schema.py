"""The settings of a run, as dataclasses; `command_line.py` fills them from defaults, YAML and flags. No torch.

Wrong keys, types and ranges are refused here. Names (of methods, rules, networks, datasets) and settings without effect
are checked by `sidpar/methods`, which completes a configuration. What depends on the network or on the number of ranks
(L >= K, one alpha per refiner, ...) is checked where these are first known, before any message.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from sidpar.config.groups.bp import BPConfig
from sidpar.config.groups.compute import Compute
from sidpar.config.groups.data import DataConfig
from sidpar.config.groups.model import ModelConfig
from sidpar.config.groups.objective import Objective
from sidpar.config.groups.optim import OptimConfig
from sidpar.config.groups.parallel import ParallelConfig
from sidpar.config.groups.run import CheckpointConfig, RunConfig


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
    method: str = "sid"
    """sid: local learning, the refiners placed on ranks; local: the same training in one process, as a reference; bp:
    backpropagation, in one process or as a pipeline over ranks; ddp: data-parallel backpropagation, the whole network
    on every rank."""

    @property
    def learning(self) -> str:
        """The method, and the rule if it is not SID's, for messages to people."""
        own = self.objective.rule != Objective.rule
        return f"{self.method} by {self.objective.rule}" if own else self.method

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what is written to the run folder and compared between ranks."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, Any]:
        """The same by full names: `optim.lr`."""
        return _flat(self.to_dict())

    def differences(self, other: dict[str, Any]) -> list[str]:
        """The settings that decide what is learned and that differ in another configuration, given as by `to_dict`."""
        # A setting that did not exist yet when the other was written had the effect of its default.
        here, there = self.flat(), Config().flat() | _flat(other)
        return [
            f"{key}: {there[key]!r} there, {value!r} here"
            for key, value in here.items()
            if there[key] != value and not is_free(key)
        ]


FREE_GROUPS = ("parallel", "checkpoint", "run")
FREE = ("data.root", "data.download", "data.eval_batch_size", "data.workers", "compute.compile")
"""Settings that may change when a run is resumed: who does the work, and how it is recorded."""


def is_free(key: str) -> bool:
    """Whether a run that is continued may have another value of this setting, given by its full name."""
    return key in FREE or (key.split(".")[0] in FREE_GROUPS and key != "run.seed")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{"optim": {"lr": 1}} to {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat
