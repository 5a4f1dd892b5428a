"""The interface of local learning rules: all that engines, schedules, meters and plans know of a rule.

Letters: i refiner, L refiners, b rows of a microbatch, C classes. Refiners are numbered from 0, as in the code.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sidpar.cascade.cascade import TensorTuple, initial_state
from sidpar.cascade.specs import CascadeSpecs
from sidpar.config.groups.objective import Objective
from sidpar.errors import UsageError
from sidpar.rules.kl import kl_to, target_of
from sidpar.rules.propositions import teacher_drift
from sidpar.seeding import generator


@dataclass(frozen=True)
class Rows:
    """Rows of a batch, with the random numbers that a rule draws for them. These depend on (seed, refiner, step, row)
    alone, so they are the same for any number of ranks and microbatches."""

    seed: int
    step: int
    numbers: range
    """The positions of the rows in the global batch."""
    total: int
    """The number of rows in the global batch."""

    def normal(self, what: str, i: int, width: int, like: Tensor) -> Tensor:
        """Standard normal numbers for refiner i, [b, width], with the dtype and on the device of `like`."""
        drawn = torch.randn(self.total, width, generator=generator("rule", self.seed, what, i, self.step))
        return drawn[self.numbers.start : self.numbers.stop].to(like)


class LocalRule(ABC):
    """What refiners learn from. A subclass defines `name` and `loss`; everything else has a default. A rule knows
    nothing of ranks.

    Its attributes decide how it is executed: schedules send no states for a rule that passes none, and what it does not
    support is refused.

    Args:
        objective: the settings that the rule reads.
    """

    name: ClassVar[str]
    """The name in `objective.rule` and in error messages."""
    reads: ClassVar[tuple[str, ...]] = ("label_smoothing", "extractor_update")
    """The settings of the objective that the rule reads."""
    passes_states: ClassVar[bool] = True
    """Whether refiner i + 1 is trained on what refiner i returns. If not, `made_state` makes the state of each refiner,
    no states are sent between ranks in training, and all refiners start at once. Inference is always a chain."""
    sums_over_rows: ClassVar[bool] = True
    """Whether the loss of a batch is the sum of the losses of its rows, so that a batch may be cut into parts."""
    loss_reads_features: ClassVar[bool] = True
    """Whether the loss reads features. If not, a rank is sent only the features that its refiners read."""
    copies: ClassVar[int] = 1
    """How many rows `enter` makes of each row in training."""
    measures: ClassVar[tuple[str, ...]] = ("loss", "kl", "correct")
    """The names of what `measure` sums over samples. `loss` and `correct` (correct predictions) must be among them."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __str__(self) -> str:
        """What must be the same on all ranks: the class, and attributes that are plain values."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, _PLAIN)}
        return f"{type(self).__qualname__}({', '.join(f'{name}={value}' for name, value in plain.items())})"

    def check(self, num_refiners: int) -> None:
        """Raises UsageError if the settings do not fit a cascade of L refiners."""
        return

    def check_parts(self, **parts: int) -> None:
        """Raises UsageError if the loss is not a sum over rows, but a setting cuts batches into parts:
        `microbatches=4`."""
        for name, number in parts.items():
            if number > 1 and not self.sums_over_rows:
                raise UsageError(
                    f"{name}={number} cuts a batch into parts, but the loss of objective.rule={self.name} is not a "
                    f"sum over rows, so the parts' losses do not add up to the batch's: set parallel.{name}=1, or use "
                    "another rule"
                )

    def check_states(self, specs: CascadeSpecs) -> None:
        """Raises UsageError if the rule cannot train a cascade with such features and states."""
        return

    # Inputs, states and targets

    def enter(self, x: Tensor, y: Tensor, rows: Rows, *, training: bool) -> tuple[Tensor, Tensor]:
        """The inputs and labels that are made of a batch x [b, ...], y [b] or [b, T] before the extractor. In training,
        each row may become `copies` consecutive rows. These stay in one microbatch, and on one rank of a sharded
        extractor."""
        return x, y

    def made_state(self, i: int, num_refiners: int, features: TensorTuple, target: Tensor, rows: Rows) -> TensorTuple:
        """The state that refiner i receives in training, if the rule passes none. By default the uniform log-belief [b,
        C] or [b, T, C], which the first refiner receives in inference."""
        return initial_state(features, target.shape[-1])

    def target(self, y: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
        """The target that refiners learn, as probabilities [b, C] or [b, T, C]: by default p_y, the smoothed label."""
        return target_of(self.objective, y, num_classes, dtype)

    # Losses

    @abstractmethod
    def loss(self, i: int, features: TensorTuple, state: TensorTuple, following: TensorTuple, target: Tensor) -> Tensor:
        """The loss of refiner i, which computed `following` from features and state. If it is a sum over rows, the loss
        of each row, [b] or [b, T]; otherwise that of the batch, a scalar. No gradient passes through `state`."""

    def losses(
        self,
        refiners: Sequence[int],
        features: TensorTuple,
        states: Sequence[TensorTuple],
        following: TensorTuple,
        target: Tensor,
    ) -> Tensor:
        """The losses of n refiners that ran at once, [n, ...]; `following` holds their n results stacked, [n, b, ...].
        Override it where one computation can give all of them."""
        each = zip(refiners, states, zip(*following, strict=True), strict=True)
        return torch.stack([self.loss(i, features, state, result, target) for i, state, result in each])

    def trains_extractor_through(self, i: int, num_refiners: int) -> bool:
        """Whether the loss of refiner i sends a gradient to the features."""
        return self.objective.trains_extractor_through(i, num_refiners)

    @property
    def trains_extractor(self) -> bool:
        """Whether the loss of any refiner sends a gradient to the features."""
        return self.objective.extractor_update != "frozen"

    # Measures

    def kept(self, state: TensorTuple) -> Tensor:
        """The part of a state that is kept to measure the batch, [b, ...], of one shape for all states: by default its
        log-belief."""
        return state[0]

    def drift(self, received: Tensor, fresh: Tensor) -> Tensor:
        """The distance between the state that a refiner received and the one that it would have received without late
        updates, for each row, [b] or [b, T]. Both are as `kept` returns them. By default ||q - q'|| of beliefs
        (Proposition 5)."""
        return teacher_drift(received, fresh)

    def predict(self, returned: Tensor) -> Tensor:
        """The predicted classes [...], from what `kept` returns for a refiner's result."""
        return returned.argmax(-1)

    def measure(self, refiners: Sequence[int], received: Tensor, returned: Tensor, y: Tensor) -> Tensor:
        """The `measures` of n refiners, summed over samples: [n, k] in float64.

        The default is for rules that keep log-beliefs, and whose loss reads no features.

        Args:
            refiners: the numbers of these refiners.
            received: what `kept` returned for the states before each refiner, [n, b, ...].
            returned: the same for the states after each refiner.
            y: the labels of these rows, [b] or [b, T].
        """
        target = self.target(y, returned.shape[-1], returned.dtype)
        states = [(state,) for state in received]
        losses = self.losses(refiners, (), states, (returned,), target)
        if not self.sums_over_rows:  # the batch's loss is that of each sample
            losses = losses.unsqueeze(1).expand(len(losses), y.numel())
        return summed([losses, kl_to(returned, target.expand_as(returned), "forward"), self.predict(returned) == y])

    def row(self, means: Mapping[str, list[float]], num_classes: int) -> dict[str, Any]:
        """The columns of a row of metrics.jsonl, from the means over samples, each [L]. By default the means
        themselves, with `correct` as `accuracy`. `loss` and `accuracy` must be among them."""
        return {"accuracy" if name == "correct" else name: values for name, values in means.items()}


def summed(columns: Sequence[Tensor]) -> Tensor:
    """Measures of each sample, [n, b, ...] each, as one table of their sums: [n, k] in float64."""
    return torch.stack([column.flatten(1).sum(1, dtype=torch.float64) for column in columns], dim=1)


_PLAIN = (bool, int, float, str, tuple, list, Objective)
