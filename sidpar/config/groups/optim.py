"""The optimizer, and the learning rate over time."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sidpar.config.groups.checks import fill_in
from sidpar.config.groups.choices import OptimizerName, RateSchedule
from sidpar.config.groups.refusals import Refusal, less_than, not_positive, outside, refuse, unread
from sidpar.errors import UsageError


def _check_warmup(optim: Any) -> None:
    if optim.warmup_epochs > optim.epochs:
        raise UsageError(
            f"optim.warmup_epochs={optim.warmup_epochs:g} is longer than optim.epochs={optim.epochs}: shorten it"
        )


def _check_nesterov(optim: Any) -> None:
    if optim.momentum == 0 and optim.nesterov:
        raise UsageError("optim.nesterov=true needs optim.momentum > 0, got 0: raise it, or set optim.nesterov=false")


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

    UNITS = MappingProxyType(
        {
            **dict.fromkeys(("lr", "extractor_lr", "weight_decay", "momentum"), "none"),
            **dict.fromkeys(("epochs", "warmup_epochs"), "epochs"),
            "clip": "none; the norm of gradients",
        }
    )
    REFUSALS = (
        *not_positive("optim.lr", "optim.extractor_lr"),
        *less_than(0, "optim.epochs", "optim.weight_decay", "optim.warmup_epochs"),
        *not_positive("optim.clip"),
        Refusal(("optim.warmup_epochs",), "more than optim.epochs", _check_warmup),
        unread(
            "unless optim.name=sgd",
            lambda optim: f"optim.name={optim.name} has no momentum setting",
            "optim.momentum",
            "optim.nesterov",
            when=lambda optim: optim.name != "sgd",
        ),
        *outside("[0, 1)", "optim.momentum"),
        Refusal(("optim.nesterov",), "true, with optim.momentum=0", _check_nesterov),
    )

    def __post_init__(self) -> None:
        if self.name == "sgd":
            fill_in(self, momentum=0.9, nesterov=self.momentum != 0)
        refuse(self, self.REFUSALS)
