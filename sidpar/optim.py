"""Optimizers, and the learning rate over time."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sidpar.config import OptimConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> Optimizer:
    """The configured optimizer in torch's fused form, which makes one call per step instead of one per tensor."""
    parameters = at_least_one(parameters)
    if config.name == "sgd":
        assert config.momentum is not None
        assert config.nesterov is not None
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def at_least_one(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """A rank of a pipeline may hold layers without parameters alone, and torch refuses an optimizer of nothing: then an
    empty parameter that never gets a gradient."""
    return list(parameters) or [nn.Parameter(torch.zeros(0))]


def build_scheduler(optimizer: Optimizer, config: OptimConfig, steps_per_epoch: int) -> LambdaLR:
    """One call of `step` per optimizer step."""
    return LambdaLR(optimizer, learning_rate_factor(config, steps_per_epoch))


def learning_rate_factor(config: OptimConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """lr(step) / optim.lr: linear warm-up, then cosine to 0 at the end of the last epoch, or constant."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return factor
