"""Where a run is recorded, how often, and the states from which it goes on."""

from dataclasses import dataclass

from sidpar.config.groups.checks import at_least, without_effect
from sidpar.errors import UsageError


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

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or len(self.name) > 200:
            raise UsageError(
                f"run.name is part of a folder's name, so it must have 1 to 200 characters and no slash, got "
                f"{self.name!r}: choose another, or say by run.dir where the run is to be"
            )
        at_least("run.seed", self.seed, 0)
        at_least("run.log_every", self.log_every, 1)
        at_least("run.eval_every", self.eval_every, 1)


@dataclass(frozen=True)
class CheckpointConfig:
    """The states from which the same command goes on, once its run has been interrupted."""

    every: int | None = None
    """Steps between two checkpoints; by default one epoch. 0 for none. A stream is drained for each."""
    keep: int = 2
    """How many are kept: the newest ones."""
    asynchronous: bool = True
    """Write while training goes on, from a copy in host memory."""

    def __post_init__(self) -> None:
        if self.every is not None:
            at_least("checkpoint.every", self.every, 0)
        at_least("checkpoint.keep", self.keep, 1)
        if self.every == 0:
            without_effect("checkpoint", self, ["keep", "asynchronous"], "checkpoint.every=0 writes none")
