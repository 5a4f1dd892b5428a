"""Optimizers, and the learning rate over time."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sidpar.config.groups.optim import OptimConfig


class Optimizers:
    """This rank's optimizers: the extractor's and the refiners', each with a learning rate of its own over time, since
    streaming updates them at different moments."""

    def __init__(self, parts: Mapping[str, nn.Module], config: OptimConfig, steps_per_epoch: int) -> None:
        """`parts` by global name: `extractor`, `refiners.3`."""
        self._config = config
        self._factor = learning_rate_factor(config, steps_per_epoch)
        self._optimizers: dict[str, tuple[Optimizer, LambdaLR]] = {}
        self._names: dict[str, list[str]] = {}
        for kind in ("extractor", "refiners"):
            parameters = {
                f"{name}.{inner}": parameter
                for name, part in parts.items()
                if _kind(name) == kind
                for inner, parameter in part.named_parameters()
            }
            if parameters:
                rate = config.lr if kind == "refiners" or config.extractor_lr is None else config.extractor_lr
                optimizer = build_optimizer(parameters.values(), config, rate)
                self._names[kind] = list(parameters)
                self._optimizers[kind] = optimizer, LambdaLR(optimizer, self._factor)

    @property
    def all(self) -> list[Optimizer]:
        """torch's optimizers."""
        return [optimizer for optimizer, _ in self._optimizers.values()]

    def update(self, parts: Collection[str]) -> None:
        """Apply the gradients of the parts with these names: the extractor, all refiners, or both."""
        for kind in {_kind(name) for name in parts} & self._optimizers.keys():
            optimizer, scheduler = self._optimizers[kind]
            optimizer.step()
            scheduler.step()

    def rehearse(self) -> None:
        """Use every kernel of an update once, on parameters that are nobody's. In a stream the first update comes while
        other ranks wait, and a kernel's first use may wait for them."""
        for optimizer in self.all:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            others = [
                nn.Parameter(p.detach().new_zeros(1)) for p in {(p.dtype, p.device): p for p in parameters}.values()
            ]
            for parameter in others:
                parameter.grad = torch.zeros_like(parameter)
            if self._config.clip is not None:
                nn.utils.clip_grad_norm_(others, self._config.clip)
            other = build_optimizer(others, self._config, self._config.lr)
            for _ in range(2):  # the first one finds no state
                other.step()

    def state(self) -> dict[str, Tensor]:
        """The optimizers' state of each parameter, by its global name: `extractor.0.weight/exp_avg`.

        By ourselves, since torch's `get_optimizer_state_dict` makes up a state for parameters that have none yet.
        """
        found: dict[str, Tensor] = {}
        for kind, (optimizer, _) in self._optimizers.items():
            state = optimizer.state_dict()["state"]
            for k, name in enumerate(self._names[kind]):
                items = state.get(k, {}).items()
                found |= {f"{name}/{key}": value for key, value in items if isinstance(value, Tensor)}
        return found

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on after `updates` updates of each part, with what `state` holds of this rank's parameters."""
        for kind, (optimizer, _) in self._optimizers.items():
            places = {name: k for k, name in enumerate(self._names[kind])}
            content: dict[int, dict[str, Tensor]] = {}
            for full_name, tensor in state.items():
                name, key = full_name.rsplit("/", 1)
                if name in places:
                    content.setdefault(places[name], {})[key] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": content})
            self._optimizers[kind] = optimizer, LambdaLR(optimizer, self._factor, last_epoch=updates - 1)


def _kind(part: str) -> str:
    return part.split(".")[0]


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig, rate: float) -> Optimizer:
    """The configured optimizer in torch's fused form, which makes one call per step instead of one per tensor."""
    if config.name == "sgd":
        assert config.momentum is not None
        assert config.nesterov is not None
        return torch.optim.SGD(
            parameters,
            lr=rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, weight_decay=config.weight_decay, fused=True)


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
