"""A cascade whose refiners run one by one, or at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sidpar.cascade.cascade import Cascade, TensorTuple, detach, extract, initial_state, refine
from sidpar.cascade.stacked import StackedRefiners
from sidpar.config.groups.objective import Objective
from sidpar.rules.kl import local_loss, local_losses, target_of
from tests import networks

TOLERANCE = 1e-12
L = 5

NETWORKS: dict[str, Callable[[int], Cascade]] = {
    "plain": networks.plain,
    "with_hidden_state": networks.with_hidden_state,
    "with_float_state": networks.with_float_state,
    "tokens": networks.tokens,
}
OBJECTIVES = {
    "forward": Objective(0.3),
    "reverse": Objective(0.3, "reverse", 0.1),
    "an alpha for each, forward": Objective([0.2, 1.0, 0.5, 0.7, 0.9]),
    "an alpha for each, reverse": Objective([0.2, 1.0, 0.5, 0.7, 0.9], "reverse", 0.1),
    "deep supervision": Objective(1.0),
    "final": Objective(0.3, extractor_update="final"),
    "frozen": Objective(0.3, extractor_update="frozen"),
}


class Problem:
    """A cascade of L refiners with a batch, of which `stacked` run at once, from the first that receives what all of
    them receive: a chain's first refiner receives no hidden activation."""

    def __init__(self, name: str = "plain", objective: Objective = OBJECTIVES["forward"], rows: int = 6) -> None:
        self.cascade = NETWORKS[name](L)
        self.objective = objective
        x, self.y = networks.batch(rows, 5 if name == "tokens" else None)
        self.features = tuple(
            f.detach().requires_grad_(f.is_floating_point()) for f in extract(self.cascade.extractor, x)
        )
        self.target = target_of(objective, self.y, networks.CLASSES, torch.float64)
        self.alphas = objective.alphas(L)
        self.first = 1 if name.startswith("with_") else 0

    @property
    def stacked(self) -> range:
        return range(self.first, L)

    @property
    def refiners(self) -> list[nn.Module]:
        return [self.cascade.refiners[i] for i in self.stacked]

    def stack(self, **options: Any) -> StackedRefiners:
        sends = [self.objective.trains_extractor_through(i, L) for i in self.stacked]
        return StackedRefiners(self.refiners, first=self.first, feature_gradients=sends, **options)

    @torch.no_grad()
    def states(self) -> list[TensorTuple]:
        """What the stacked refiners receive."""
        states = [initial_state(self.features, networks.CLASSES)]
        for refiner in self.cascade.refiners:
            states.append(refine(refiner, self.features, states[-1]))
        return states[self.first : L]

    def one_by_one(self) -> None:
        for i, state in zip(self.stacked, self.states(), strict=True):
            sends = self.objective.trains_extractor_through(i, L)
            following = refine(self.cascade.refiners[i], self.features if sends else detach(self.features), state)
            losses = local_loss(self.objective, self.alphas[i], following[0], state[0], self.target)
            (losses.sum() / self.y.numel()).backward()

    def at_once(self, stacked: StackedRefiners) -> TensorTuple:
        states = self.states()
        following = stacked.forward(self.features, states)
        teachers = torch.stack([state[0] for state in states])
        losses = local_losses(self.objective, self.alphas[self.first :], following[0], teachers, self.target)
        (losses.sum() / self.y.numel()).backward()
        return following

    def gradients(self) -> dict[str, Tensor | None]:
        """Of every parameter of the stacked refiners and of the features."""
        found = {f"{i}.{name}": p.grad for i in self.stacked for name, p in self.cascade.refiners[i].named_parameters()}
        return found | {f"feature {place}": feature.grad for place, feature in enumerate(self.features)}


def assert_equal(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], factor: float = 1.0) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        other = expected[name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            assert gradient.abs().max() > 0, name
            assert (gradient - factor * other).abs().max() <= TOLERANCE, name
