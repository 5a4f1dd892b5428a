"""Rules of a user's own, which are in no registry: they need of the interface what those that come along do not."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sidpar.cascade.cascade import TensorTuple
from sidpar.rules.base import LocalRule, Rows, summed


class Contrast(LocalRule):
    """Every row enters twice, as it is and turned around, noisily; the second time refiners learn the next class, and
    the hidden activation of the first is to be the larger. What is kept and measured is its square. The loss of all
    refiners but the first reads the features."""

    name = "contrast"
    copies = 2
    measures = ("loss", "correct", "goodness")

    def enter(self, x: Tensor, y: Tensor, rows: Rows, *, training: bool) -> tuple[Tensor, Tensor]:
        if not training:
            return x, y
        noise = rows.normal("turned", 0, x[0].numel(), x).view_as(x)
        both, labels = torch.stack([x, 0.1 * noise - x], 1), torch.stack([y, (y + 1) % 3], 1)
        return both.flatten(0, 1), labels.flatten(0, 1)

    def loss(self, i: int, features: TensorTuple, state: TensorTuple, following: TensorTuple, target: Tensor) -> Tensor:
        log_belief, hidden = following
        reads_features = 0.0 if i == 0 else features[1].square().mean(1)
        as_it_is, turned = hidden.square().mean(1).unflatten(0, (-1, 2)).unbind(1)
        larger = softplus(turned - as_it_is).repeat_interleave(2)
        return -(target * log_belief).sum(-1) + larger + reads_features

    def kept(self, state: TensorTuple) -> Tensor:
        hidden = state[1] if len(state) > 1 else torch.zeros_like(state[0])
        return torch.cat([state[0], hidden.square().mean(1, keepdim=True)], 1)

    def measure(self, refiners: Sequence[int], received: Tensor, returned: Tensor, y: Tensor) -> Tensor:
        log_beliefs, goodness = returned[..., :-1], returned[..., -1]
        losses = -log_beliefs.gather(-1, y.expand(len(refiners), -1).unsqueeze(-1)).squeeze(-1)
        return summed([losses, log_beliefs.argmax(-1) == y, goodness])


class Spread(LocalRule):
    """A loss that is no sum over rows: the label's, plus how alike the beliefs of a batch are."""

    name = "spread"
    sums_over_rows = False

    def loss(self, i: int, features: TensorTuple, state: TensorTuple, following: TensorTuple, target: Tensor) -> Tensor:
        log_belief = following[0]
        return -(target * log_belief).sum(-1).mean() - log_belief.exp().std(0).sum()
