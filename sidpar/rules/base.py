"""What a local learning rule says, and all that engines, schedules, meters and plans know of one.

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
    """Which rows of which step a rule is asked about. Its random numbers depend on (seed, refiner, step, row) alone, so
    they are the same on any number of ranks, with any number of microbatches."""

    seed: int
    step: int
    numbers: range
    """In the global batch."""
    total: int
    """Rows of the global batch."""

    def normal(self, what: str, i: int, width: int, like: Tensor) -> Tensor:
        """Standard normal numbers for refiner i, [b, width], with the dtype and on the device of `like`."""
        drawn = torch.randn(self.total, width, generator=generator("rule", self.seed, what, i, self.step))
        return drawn[self.numbers.start : self.numbers.stop].to(like)


class LocalRule(ABC):
    """What refiners learn from. A rule is a file of this package and a line in its registry; it knows no ranks.

    What it declares decides how it can be executed: schedules send no states for a rule that passes none, and what a
    rule does not support is refused from here.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ("label_smoothing", "extractor_update")
    """The settings of the objective that have an effect."""
    passes_states: ClassVar[bool] = True
    """Whether refiner i + 1 is trained on what refiner i returns. Without that, `made_state` gives each its state, no
    state travels between ranks in training, and all refiners begin at once. Inference is a chain in any case."""
    sums_over_rows: ClassVar[bool] = True
    """Whether the loss of a batch is the sum of losses of its rows, so that a batch may be cut in parts."""
    copies: ClassVar[int] = 1
    """How many rows `enter` makes of each one in training."""
    measures: ClassVar[tuple[str, ...]] = ("loss", "kl", "correct")
    """What `measure` sums over samples. `loss` and `correct` (correct predictions) are among them."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __str__(self) -> str:
        """All that must be alike on all ranks: the class, and attributes that are plain values."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, _PLAIN)}
        return f"{type(self).__qualname__}({', '.join(f'{name}={value}' for name, value in plain.items())})"

    def check(self, num_refiners: int) -> None:
        """Raises UsageError if the settings do not fit a cascade of L refiners."""
        return

    def check_parts(self, **parts: int) -> None:
        """Raises UsageError if a batch is cut into so many parts, by the setting's name, though its loss is no sum."""
        for name, number in parts.items():
            if number > 1 and not self.sums_over_rows:
                raise UsageError(
                    f"{name}={number} cuts a batch into parts, but the loss of objective.rule={self.name} is no sum "
                    f"over rows, so the parts' losses do not add up to the batch's: set parallel.{name}=1, or use "
                    "another rule"
                )

    def check_states(self, specs: CascadeSpecs) -> None:
        """Raises UsageError if the rule cannot train a cascade whose seams are these."""
        return

    # What enters

    @property
    def makes_rows(self) -> bool:
        """Whether a batch becomes something else before it enters; every rank needs the inputs of all of its rows
        then."""
        return type(self).enter is not LocalRule.enter

    def enter(self, x: Tensor, y: Tensor, rows: Rows, *, training: bool) -> tuple[Tensor, Tensor]:
        """What a batch x [b, ...], y [b] or [b, T] becomes before it enters. In training a row
        may become several, `copies` one after the other: these stay together in one microbatch, and on one rank of a
        sharded extractor."""
        return x, y

    def made_state(self, i: int, num_refiners: int, features: TensorTuple, target: Tensor, rows: Rows) -> TensorTuple:
        """Where none are passed, what refiner i receives in training: by default the uniform log-belief, which the
        first one receives in inference."""
        return initial_state(features, target.shape[-1])

    def target(self, y: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
        """What refiners are taught, [b, C] or [b, T, C]: by default p_y, the smoothed label."""
        return target_of(self.objective, y, num_classes, dtype)

    # What is learned

    @abstractmethod
    def loss(self, i: int, features: TensorTuple, state: TensorTuple, following: TensorTuple, target: Tensor) -> Tensor:
        """The loss of refiner i, which has made `following` of features and state: of each row, [b] or [b, T], where it
        is a sum over rows; else of the batch, a scalar. No gradient passes through `state`."""

    def losses(
        self,
        refiners: Sequence[int],
        features: TensorTuple,
        states: Sequence[TensorTuple],
        following: TensorTuple,
        target: Tensor,
    ) -> Tensor:
        """The losses of n refiners that ran at once, [n, ...]; `following` holds their n results stacked, [n, b, ...].
        For rules whose formula takes all of them in one computation to override."""
        each = zip(refiners, states, zip(*following, strict=True), strict=True)
        return torch.stack([self.loss(i, features, state, result, target) for i, state, result in each])

    def trains_extractor_through(self, i: int, num_refiners: int) -> bool:
        """Whether the loss of refiner i sends a gradient to the features."""
        return self.objective.trains_extractor_through(i, num_refiners)

    @property
    def trains_extractor(self) -> bool:
        """Whether the loss of any refiner does."""
        return self.objective.extractor_update != "frozen"

    # What is measured

    def kept(self, state: TensorTuple) -> Tensor:
        """What of a state is kept until a batch is measured, [b, ...], of one shape for all states: its log-belief."""
        return state[0]

    def drift(self, received: Tensor, fresh: Tensor) -> Tensor:
        """How far what a refiner received is from what it would have received without late updates, both as `kept`
        keeps them: of each row, [b] or [b, T]. By default ||q - q'|| of beliefs (Proposition 5)."""
        return teacher_drift(received, fresh)

    def predict(self, returned: Tensor) -> Tensor:
        """The classes [...] that what a refiner returned stands for, of what `kept` keeps."""
        return returned.argmax(-1)

    def measure(self, refiners: Sequence[int], received: Tensor, returned: Tensor, y: Tensor) -> Tensor:
        """The `measures` of n refiners, summed over samples: [n, k] in float64.

        By default for a rule that keeps log-beliefs, and whose loss reads no features.

        Args:
            received, returned: what was kept of the states before and after each refiner, [n, b, ...].
            y: the labels of these rows.
        """
        target = self.target(y, returned.shape[-1], returned.dtype)
        states = [(state,) for state in received]
        losses = self.losses(refiners, (), states, (returned,), target)
        if not self.sums_over_rows:  # the batch's loss is that of each sample
            losses = losses.unsqueeze(1).expand(len(losses), y.numel())
        return summed([losses, kl_to(returned, target.expand_as(returned), "forward"), self.predict(returned) == y])

    def row(self, means: Mapping[str, list[float]], num_classes: int) -> dict[str, Any]:
        """What a row of metrics.jsonl shows of the means over samples, each [L]: by default as they are, `correct` as
        `accuracy`. `loss` and `accuracy` must be among it."""
        return {"accuracy" if name == "correct" else name: values for name, values in means.items()}


def summed(columns: Sequence[Tensor]) -> Tensor:
    """Measures of each sample, [n, b, ...] each, as one table of their sums: [n, k] in float64."""
    return torch.stack([column.flatten(1).sum(1, dtype=torch.float64) for column in columns], dim=1)


_PLAIN = (bool, int, float, str, tuple, list, Objective)
