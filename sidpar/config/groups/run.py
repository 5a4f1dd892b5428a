"""Where and how often a run is recorded, and its checkpoints."""

from dataclasses import dataclass

from sidpar.config.groups.checks import at_least, without_effect
from sidpar.errors import UsageError


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

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or len(self.name) > 200:
            raise UsageError(
                f"run.name is part of a folder's name, so it must have 1 to 200 characters and no slash, got "
                f"{self.name!r}: choose another name, or set run.dir"
            )
        at_least("run.seed", self.seed, 0)
        at_least("run.log_every", self.log_every, 1)
        at_least("run.eval_every", self.eval_every, 1)


@dataclass(frozen=True)
class CheckpointConfig:
    """The checkpoints from which the same command resumes an interrupted run."""

    every: int | None = None
    """Steps between two checkpoints; by default one epoch; 0 for none. schedule=streaming is drained for each."""
    keep: int = 2
    """Number of checkpoints that are kept: the newest ones."""
    asynchronous: bool = True
    """Write checkpoints while training goes on, from a copy in host memory."""

    def __post_init__(self) -> None:
        if self.every is not None:
            at_least("checkpoint.every", self.every, 0)
        at_least("checkpoint.keep", self.keep, 1)
        if self.every == 0:
            without_effect("checkpoint", self, ["keep", "asynchronous"], "checkpoint.every=0 writes none")
