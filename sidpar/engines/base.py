"""Engines execute steps. All have the interface of `Engine`, and the trainer asks no more of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sidpar.cascade.specs import CascadeSpecs
from sidpar.config.groups.objective import Objective
from sidpar.errors import UsageError
from sidpar.profiler.clock import Clock, span
from sidpar.profiler.traffic import Traffic
from sidpar.rules.propositions import MEASURES, measure
from sidpar.stages.stage import Stage


@dataclass(frozen=True)
class StepResult:
    """What one batch showed of this rank's n refiners. Nothing is computed until it is asked for.

    `log_beliefs[i]` holds the microbatches [b, C] (or [b, T, C]) of the log-belief that refiner i receives, its
    teacher, and `log_beliefs[i + 1]` of the one that it returns, for every i of `refiners`. `y` are their labels: of
    the whole batch, or of this rank's share of it, while `samples` counts the whole batch.
    """

    objective: Objective
    alphas: Sequence[float]
    refiners: Sequence[int]
    log_beliefs: Mapping[int, Sequence[Tensor]]
    y: Tensor
    samples: int
    batch_size: int
    """B."""
    diagnosis: dict[str, Any] | None = None
    """What the engine has found out about itself at this step, where it was asked to (`StreamingEngine`)."""

    def measures(self) -> Tensor:
        """`theory.MEASURES` of this rank's refiners, summed over its share of the batch: [n, 6], float64."""
        if not self.refiners:
            return torch.zeros(0, len(MEASURES), dtype=torch.float64, device=self.y.device)
        whole = {i: torch.cat(list(microbatches)) for i, microbatches in self.log_beliefs.items()}
        teachers = torch.stack([whole[i] for i in self.refiners])
        beliefs = torch.stack([whole[i + 1] for i in self.refiners])
        return measure(self.objective, self.alphas, teachers, beliefs, self.y)

    @property
    def loss(self) -> Tensor:
        """Mean local loss of each of this rank's refiners, [n], over this rank's share of the batch."""
        return self._mean("loss")

    @property
    def accuracy(self) -> Tensor:
        """Share of correct predictions of each of this rank's refiners, [n], over this rank's share of the batch."""
        return self._mean("correct")

    def _mean(self, column: str) -> Tensor:
        return self.measures()[:, MEASURES.index(column)] / max(1, self.y.numel())


Update = Callable[[Collection[str]], None]
"""Applies the gradients of the parts with these names, which are complete: clips them, steps an optimizer. No other
parameter has a gradient then, so one optimizer for all of them will do."""


class Engine(Protocol):
    """Executes steps over a stage."""

    stage: Stage
    objective: Objective
    steps: int
    """Steps done so far: random masks depend on it, so a resumed run sets it."""
    clock: Clock | None
    """Records the phases of the steps; None, the default, for no record."""
    traffic: Traffic
    """What this rank has sent."""

    @property
    def versions(self) -> list[Tensor]:
        """Weights of the extractor for batches in flight, besides its own; each has a gradient."""

    def carried(self) -> dict[str, Tensor]:
        """What the engine takes from one step to the next besides `steps` and the weights, between two calls of
        `train`: by the parameter that it belongs to, `extractor.0.weight/movement`."""

    def carry(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what `carried` gave, in another process."""

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """Gradients of one global batch into `stage.parameters()`, replacing those that were there.

        Args:
            x: inputs [B, ...], the same on every rank.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.
        """

    def train(self, batches: Iterable[tuple[Tensor, Tensor]], update: Update) -> Iterator[StepResult]:
        """A step for each batch, and `update` whenever the gradients of some of `stage.parts()` are complete. When the
        iterator ends, all updates are done."""

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        """Beliefs of one batch in inference mode; no gradients."""

    def clip(self, limit: float, parts: Collection[str]) -> None:
        """Scale the gradients of these parts down to norm `limit`: of each on its own where learning is local; else of
        all together, and then they must be all."""


class Synchronous(ABC):
    """What engines have in common that finish one step before they begin the next."""

    stage: Stage
    clock: Clock | None

    @property
    def versions(self) -> list[Tensor]:
        """Nothing is in flight between steps."""
        return []

    def carried(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def carry(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to go on with."""
        return

    @abstractmethod
    def step(self, x: Tensor, y: Tensor) -> StepResult: ...

    def train(self, batches: Iterable[tuple[Tensor, Tensor]], update: Update) -> Iterator[StepResult]:
        """A step and an update of all parts for each batch."""
        for x, y in batches:
            result = self.step(x, y)
            with span(self.clock, "optimizer"):
                update(self.stage.parts())
            yield result


def clip_each(parts: Iterable[nn.Module], limit: float) -> None:
    """Scale the gradients of each part down to norm `limit` on its own."""
    for part in parts:
        nn.utils.clip_grad_norm_(part.parameters(), limit)


def chosen(stage: Stage, names: Collection[str]) -> list[nn.Module]:
    """The parts with these names."""
    return [part for name, part in stage.parts().items() if name in names]


def check_batch(x: Tensor, y: Tensor, specs: CascadeSpecs, num_classes: int) -> None:
    """Refuse a batch that does not fit the cascade. Waits for the device, so not for every step."""
    if x.shape[0] == 0 or x.shape[0] != y.shape[0]:
        raise UsageError(
            f"a batch needs as many labels as inputs, at least one, got {x.shape[0]} inputs and {y.shape[0]} labels"
        )
    per_sample = specs.states[0][0].shape[:-1]
    if tuple(y.shape[1:]) != per_sample:
        raise UsageError(
            f"the cascade's beliefs are [B, *{list(per_sample)}, C], so labels must be [B, *{list(per_sample)}], "
            f"got {list(y.shape)}"
        )
    if y.dtype != torch.int64:
        raise UsageError(f"labels must be int64, got {y.dtype}")
    if y.min() < 0 or y.max() >= num_classes:
        raise UsageError(f"labels must lie in 0..{num_classes - 1}, got {int(y.min())}..{int(y.max())}")
