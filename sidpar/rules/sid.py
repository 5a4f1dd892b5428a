"""Synergistic Information Distillation: each refiner learns from the label and from the belief before it.

    l_i = alpha_i * KL[p_i, p_y] + (1 - alpha_i) * KL[p_i, sg(p_{i-1})],   averaged over the global batch

Formulas count refiners from 1, as the paper does: p_i is what refiner i-1 of the code returns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sidpar.cascade.cascade import TensorTuple
from sidpar.rules.base import LocalRule
from sidpar.rules.kl import local_loss, local_losses
from sidpar.rules.propositions import MEASURES, error_bound, initial_divergence, measure


class SID(LocalRule):
    """The paper's rule (Lemma 1), in both directions of KL."""

    name = "sid"
    loss_reads_features = False
    reads = ("alpha", "kl", "label_smoothing", "extractor_update")
    measures = MEASURES
    """`premise_failures` and `descent_failures` are shares of samples (Proposition 2)."""

    def check(self, num_refiners: int) -> None:
        self.objective.alphas(num_refiners)

    def loss(self, i: int, features: TensorTuple, state: TensorTuple, following: TensorTuple, target: Tensor) -> Tensor:
        return local_loss(self.objective, self.objective.alpha_of(i), following[0], state[0], target)

    def losses(
        self,
        refiners: Sequence[int],
        features: TensorTuple,
        states: Sequence[TensorTuple],
        following: TensorTuple,
        target: Tensor,
    ) -> Tensor:
        teachers = torch.stack([state[0] for state in states])
        return local_losses(self.objective, self._alphas(refiners), following[0], teachers, target)

    def measure(self, refiners: Sequence[int], received: Tensor, returned: Tensor, y: Tensor) -> Tensor:
        """The measures of Propositions 2 and 4 too."""
        return measure(self.objective, self._alphas(refiners), received, returned, y)

    def row(self, means: Mapping[str, list[float]], num_classes: int) -> dict[str, Any]:
        """Proposition 4 in place of the excess: `epsilon`, and by how much KL[p_L, p_y] is below its bound."""
        columns = super().row(means, num_classes)
        excess = columns.pop("excess")
        bound = error_bound(initial_divergence(self.objective, num_classes), excess, self.objective.alphas(len(excess)))
        epsilon = [max(0.0, value) for value in excess]
        return {**columns, "epsilon": epsilon, "bound_slack": bound - columns["kl"][-1]}

    def _alphas(self, refiners: Sequence[int]) -> list[float]:
        return [self.objective.alpha_of(i) for i in refiners]
