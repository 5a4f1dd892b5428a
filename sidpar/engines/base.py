"""The interface of engines, which is all that the trainer uses, and what engines have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sidpar.cascade.cascade import Sample, Shaped, is_differentiable
from sidpar.cascade.specs import CascadeSpecs
from sidpar.data.input_rows import Inputs
from sidpar.engines.result import StepResult
from sidpar.errors import UsageError
from sidpar.profiler.clock import Clock, span
from sidpar.profiler.traffic import Traffic
from sidpar.rules.base import LocalRule
from sidpar.schedules.rank_view import Reads
from sidpar.stages.check import check
from sidpar.stages.stage import Stage

Update = Callable[[Collection[str]], None]
"""Applies the complete gradients of the parts with these names: clips them, steps an optimizer. No other parameter has
a gradient at that time, so one optimizer for all parameters is enough."""


class Engine(Protocol):
    """Executes steps over a stage."""

    stage: Stage
    rule: LocalRule
    """What the refiners learn from; with backpropagation, what they are measured by."""
    steps: int
    """The number of steps done. Dropout masks depend on it, so a resumed run sets it."""
    clock: Clock | None
    """Records the phases of steps; by default None, no record."""
    traffic: Traffic
    """The messages and bytes that this rank has sent."""

    @property
    def versions(self) -> list[Tensor]:
        """Copies of the extractor's weights for batches in flight; each has a gradient."""

    def carried(self) -> dict[str, Tensor]:
        """What the engine keeps between two calls of `train`, besides `steps` and the weights, for a checkpoint. Names
        begin with the parameter that it belongs to: `extractor.0.weight/movement`."""

    def carry(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `carried` returned, perhaps in another process."""

    def rows_needed(self, batch_size: int, *, training: bool) -> Sequence[int]:
        """The rows of a global batch whose inputs this rank needs, in ascending order.

        Args:
            batch_size: the size B of the global batch.
            training: for `step` and `train`; otherwise for `evaluate`.
        """

    def step(self, x: Inputs, y: Tensor) -> StepResult:
        """Compute the gradients of one global batch into `stage.parameters()`, in place of those that were there.

        Args:
            x: inputs [B, ...], the same on every rank; or those that `rows_needed` tells, as `InputRows`.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.
        """

    def train(self, batches: Iterable[tuple[Inputs, Tensor]], update: Update) -> Iterator[StepResult]:
        """Make a step for each batch, and call `update` whenever the gradients of some of `stage.parts()` are complete.
        When the iterator ends, all updates are done."""

    def evaluate(self, x: Inputs, y: Tensor) -> StepResult:
        """The beliefs about one batch, in inference mode and without gradients."""

    def clip(self, limit: float, parts: Collection[str]) -> None:
        """Scale the gradients of these parts down to norm `limit`: of each part on its own where learning is local.
        With backpropagation, of all parts together, so `parts` must name all."""


class Synchronous(ABC):
    """The base of engines that finish one step before they begin the next."""

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

    def rows_needed(self, batch_size: int, *, training: bool) -> Sequence[int]:
        """The rows of a batch whose inputs are needed: all, in one process.

        Args:
            batch_size: the size B of the global batch.
            training: for `step` and `train`; otherwise for `evaluate`.
        """
        return range(batch_size)

    @abstractmethod
    def step(self, x: Inputs, y: Tensor) -> StepResult: ...

    def train(self, batches: Iterable[tuple[Inputs, Tensor]], update: Update) -> Iterator[StepResult]:
        """A step for each batch, x [B, ...] with labels [B] or [B, T], and an update of all parts after it. `update` is
        given the names of the parts whose gradients are complete, and steps an optimizer."""
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


def check_batch(x: Shaped, y: Tensor, num_classes: int) -> None:
    """Raises UsageError for a batch without a label for each input, or with labels out of range. Waits for the device,
    so it is not called for every step."""
    if x.shape[0] == 0 or x.shape[0] != y.shape[0]:
        raise UsageError(
            f"a batch needs as many labels as inputs, at least one, got {x.shape[0]} inputs and {y.shape[0]} labels"
        )
    if y.dtype != torch.int64:
        raise UsageError(f"labels must be int64, got {y.dtype}")
    if y.min() < 0 or y.max() >= num_classes:
        raise UsageError(f"labels must lie in 0..{num_classes - 1}, got {int(y.min())}..{int(y.max())}")


def check_kept(stage: Stage, overlapping: Collection[str] = (), **parts: int) -> None:
    """Raises UsageError if batches are cut into parts, but a module keeps something from one forward to the next: it
    would see parts of a batch where it sees whole batches in one process. Batch norm's running statistics are allowed.

    Args:
        overlapping: which of `extractor` and `refiners` make a forward before the backward of an earlier one.
    """
    for cause, number in parts.items():
        for name, kept in stage.kept.items():
            if number > 1 and kept.names:
                raise UsageError(
                    f"{_spoken(name)} keeps {', '.join(kept.names)} from one forward to the next, but {cause}={number} "
                    f"gives it parts of a batch, so it would not see what it sees in one process: {_advice(cause)}"
                )
            if number > 1 and kept.trained and cause != "microbatches":
                raise UsageError(
                    f"the forward of {_spoken(name)} writes into parameters that are trained "
                    f"({', '.join(kept.trained)}), and {cause}={number} gives each copy of it another part of a batch, "
                    f"so the copies would no longer be equal: {_advice(cause)}"
                )
    for name, kept in stage.kept.items():
        if name.split(".")[0] in overlapping and not kept.overlaps:
            raise UsageError(
                f"the forward of {_spoken(name)} writes into {', '.join(kept.written)}, which the backward of an "
                "earlier batch or microbatch still needs: use microbatches=1 and no streaming, or let the forward "
                "compute with a clone() of it"
            )


def _spoken(name: str) -> str:
    return name.replace("extractor", "the extractor").replace("refiners.", "refiner ")


def _advice(cause: str) -> str:
    return "train it on one rank" if cause == "ranks" else f"set parallel.{cause}=1"


def check_extractor_learns(stage: Stage, rule: LocalRule, x: Tensor, reads: Reads | None) -> None:
    """Raises UsageError if no refiner whose loss trains the extractor reads a feature that has a gradient, for inputs
    like x. `reads` says of each feature which refiners read it, None that this is not known."""
    if reads is None or not rule.trains_extractor or not stage.skeleton.extractor_is_trainable:
        return
    features, count = stage.skeleton.specs(x).features, stage.placement.num_refiners
    readers = {i for spec, own in zip(features, reads, strict=True) if is_differentiable(spec.dtype) for i in own}
    if not any(rule.trains_extractor_through(i, count) for i in readers):
        who = f"of {sorted(readers)}" if readers else "of no refiner"
        raise UsageError(
            f"the extractor would get no gradient: its features enter the forward {who}, and with "
            f"extractor_update={rule.objective.extractor_update} none of their losses trains it: set "
            "objective.extractor_update=all, or frozen, or let other refiners read the features"
        )


def check_seams(
    stage: Stage,
    rule: LocalRule,
    x: Sample,
    y: Tensor,
    *,
    training: bool,
    parts: Collection[int] = (),
    accompanied: bool = True,
) -> CascadeSpecs:
    """The shapes of features and states when x [b, ...] with labels y [b] or [b, T] enters the cascade, in parts of
    these numbers of rows, to which other ranks have more if `accompanied`. Raises UsageError if x or y do not fit, or
    if the rule cannot train with such states."""
    specs = check(stage, x, training=training, parts=parts, accompanied=accompanied)
    rule.check_states(specs)
    per_sample = specs.states[0][0].shape[:-1]
    if tuple(y.shape[1:]) != per_sample:
        raise UsageError(
            f"the cascade's beliefs are [B, *{list(per_sample)}, C], so labels must be [B, *{list(per_sample)}], "
            f"got {list(y.shape)}"
        )
    return specs
