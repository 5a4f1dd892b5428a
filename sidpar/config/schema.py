"""The settings of a run, as dataclasses; `command_line.py` fills them from defaults, YAML and flags. No torch.

A wrong key, type or range is refused here. What is offered by name (methods, rules, networks, datasets) is known to
`sidpar/methods`, which completes a configuration, and refuses what would have no effect. What only the network or the
ranks can tell (L >= K, one alpha per refiner, ...) is checked where these are first known, before any message.
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
    """sid: refiners on ranks, each learning by its own loss; local: the same in one process, the oracle; bp:
    backpropagation in one process, or by a pipeline over ranks; ddp: the same, every rank a share of the batch."""

    @property
    def learning(self) -> str:
        """The method for people, and the rule where it is not SID's."""
        own = self.objective.rule != Objective.rule
        return f"{self.method} by {self.objective.rule}" if own else self.method

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what is written to the run folder and compared between ranks."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, Any]:
        """The same by full names: `optim.lr`."""
        return _flat(self.to_dict())

    def differences(self, other: dict[str, Any]) -> list[str]:
        """In which settings that decide what is learned another configuration, as `to_dict` gave it, differs."""
        # A setting that is younger than the other configuration had its default's effect there.
        here, there = self.flat(), Config().flat() | _flat(other)
        return [
            f"{key}: {there[key]!r} there, {value!r} here"
            for key, value in here.items()
            if there[key] != value and not is_free(key)
        ]


FREE_GROUPS = ("parallel", "checkpoint", "run")
FREE = ("data.root", "data.download", "data.eval_batch_size", "data.workers", "compute.compile")
"""What a run that is continued may have otherwise than at its start: who does the work, and how it is recorded."""


def is_free(key: str) -> bool:
    """Whether a run that is continued may have another value of this setting, given by its full name."""
    return key in FREE or (key.split(".")[0] in FREE_GROUPS and key != "run.seed")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{"optim": {"lr": 1}} to {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat
