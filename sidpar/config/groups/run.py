"""Where a run is recorded, how often, and the states from which it goes on."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sidpar.config.groups.refusals import Refusal, less_than, refuse, unread
from sidpar.errors import UsageError


def _check_name(run: Any) -> None:
    if not run.name or "/" in run.name or len(run.name) > 200:
        raise UsageError(
            f"run.name is part of a folder's name, so it must have 1 to 200 characters and no slash, got "
            f"{run.name!r}: choose another, or say by run.dir where the run is to be"
        )


@dataclass(frozen=True)
class RunConfig:
    """Where the run is recorded."""

    name: str = "sid"
    """Part of the default run folder's name."""
    dir: str | None = None
    """Run folder; by default runs/<name>-<date>-<time>."""
    seed: int = 0
    """Of the initial weights, the order of the data, the augmentation and the random masks."""
    log_every: int = 10
    """Steps between two training rows in metrics.jsonl."""
    eval_every: int = 1
    """Epochs between two evaluations on the test set; the last epoch is always evaluated."""
    tensorboard: bool = True
    """Write TensorBoard's events beside metrics.jsonl."""

    UNITS = MappingProxyType({"seed": "none", "log_every": "steps", "eval_every": "epochs"})
    REFUSALS = (
        Refusal(("run.name",), "no text, one with a slash, or one of more than 200 characters", _check_name),
        *less_than(0, "run.seed"),
        *less_than(1, "run.log_every", "run.eval_every"),
    )

    def __post_init__(self) -> None:
        refuse(self, self.REFUSALS)


@dataclass(frozen=True)
class CheckpointConfig:
    """The states from which the same command goes on, once its run has been interrupted."""

    every: int | None = None
    """Steps between two checkpoints; by default one epoch. 0 for none. A stream is drained for each."""
    keep: int = 2
    """How many are kept: the newest ones."""
    asynchronous: bool = True
    """Write while training goes on, from a copy in host memory."""

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
