"""The optimizer, and the learning rate over time."""

from dataclasses import dataclass

from sidpar.config.groups.checks import at_least, fill_in, positive, without_effect
from sidpar.config.groups.choices import OptimizerName, RateSchedule
from sidpar.errors import UsageError


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, and the learning rate over time."""

    name: OptimizerName = "adam"
    """The optimizer."""
    lr: float = 1e-3
    """Peak learning rate."""
    extractor_lr: float | None = None
    """The extractor's peak learning rate; by default optim.lr."""
    epochs: int = 100
    """Passes over the training set; 0 only writes the initial weights."""
    weight_decay: float = 0.0
    """Decoupled for adamw, L2 for the others."""
    momentum: float | None = None
    """sgd: momentum; by default 0.9."""
    nesterov: bool | None = None
    """sgd: use Nesterov momentum; by default true."""
    schedule: RateSchedule = "cosine"
    """Learning rate after the warm-up: cosine decay to 0, or constant."""
    warmup_epochs: float = 0.0
    """Epochs at the start over which the learning rate rises linearly."""
    clip: float | None = None
    """Largest gradient norm; by default no limit. method=sid and local: of the extractor and of each refiner on its
    own; bp and ddp: of all parameters together."""

    def __post_init__(self) -> None:
        positive("optim.lr", self.lr)
        if self.extractor_lr is not None:
            positive("optim.extractor_lr", self.extractor_lr)
        at_least("optim.epochs", self.epochs, 0)
        at_least("optim.weight_decay", self.weight_decay, 0)
        at_least("optim.warmup_epochs", self.warmup_epochs, 0)
        if self.clip is not None:
            positive("optim.clip", self.clip)
        if self.warmup_epochs > self.epochs:
            raise UsageError(
                f"optim.warmup_epochs={self.warmup_epochs:g} is longer than optim.epochs={self.epochs}: shorten it"
            )
        if self.name != "sgd":
            without_effect("optim", self, ["momentum", "nesterov"], f"optim.name={self.name} has no momentum setting")
            return
        fill_in(self, momentum=0.9, nesterov=self.momentum != 0)
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise UsageError(f"optim.momentum must lie in [0, 1), got {self.momentum}")
        if self.momentum == 0 and self.nesterov:
            raise UsageError(
                "optim.nesterov=true needs optim.momentum > 0, got 0: raise it, or set optim.nesterov=false"
            )
