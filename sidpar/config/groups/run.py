"""Where and how often a run is recorded, and its checkpoints."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sidpar.config.groups.refusals import Refusal, less_than, refuse, unread
from sidpar.errors import UsageError


def _check_name(run: Any) -> None:
    if not run.name or "/" in run.name or len(run.name) > 200:
        raise UsageError(
            f"run.name is part of a folder's name, so it must have 1 to 200 characters and no slash, got "
            f"{run.name!r}: choose another name, or set run.dir"
        )


@dataclass(frozen=True)
class RunConfig:
    """Where and how often the run is recorded, and its seed."""

    name: str = "sid"
    """Part of the default run folder's name."""
    dir: str | None = None
    """Run folder; by default runs/<name>-<date>-<time>."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, the augmentation, dropout and label noise."""
    log_every: int = 10
    """Steps between two training rows in metrics.jsonl."""
    eval_every: int = 1
    """Epochs between two evaluations on the test set; the last epoch is always evaluated."""
    tensorboard: bool = True
    """Also write the metrics for TensorBoard."""

    UNITS = MappingProxyType({"seed": "none", "log_every": "steps", "eval_every": "epochs"})
    REFUSALS = (
        Refusal(("run.name",), "an empty string, one with a slash, or one of more than 200 characters", _check_name),
        *less_than(0, "run.seed"),
        *less_than(1, "run.log_every", "run.eval_every"),
    )

    def __post_init__(self) -> None:
        refuse(self, self.REFUSALS)


@dataclass(frozen=True)
class CheckpointConfig:
    """The checkpoints from which an interrupted run goes on."""

    every: int | None = None
    """Steps between two checkpoints; by default one epoch; 0 for none. schedule=streaming is drained for each."""
    keep: int = 2
    """Number of checkpoints that are kept: the newest ones."""
    asynchronous: bool = True
    """Write checkpoints while training goes on, from a copy in host memory."""

    UNITS = MappingProxyType({"every": "steps", "keep": "checkpoints"})
    REFUSALS = (
        *less_than(0, "checkpoint.every"),
        *less_than(1, "checkpoint.keep"),
        unread(
            "with checkpoint.every=0",
            "checkpoint.every=0 writes none",
            "checkpoint.keep",
            "checkpoint.asynchronous",
            when=lambda checkpoint: checkpoint.every == 0,
        ),
    )

    def __post_init__(self) -> None:
        refuse(self, self.REFUSALS)
