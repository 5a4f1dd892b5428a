"""Small networks in float64 that exercise every shape an engine must carry."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sidpar.cascade.cascade import Cascade
from sidpar.models.assembly import assemble
from sidpar.models.concat_refiner import ConcatRefiner
from sidpar.models.residual_block import Head, ResidualBlock, equal_cost

CLASSES = 3
INPUTS = 5


def plain(num_refiners: int) -> Cascade:
    """Features [B, 4], a belief, nothing else."""
    return on_features(lambda: nn.Sequential(nn.Linear(INPUTS, 6), nn.Tanh(), nn.Linear(6, 4)), num_refiners, seed=1)


def on_features(extractor: Callable[[], nn.Module], num_refiners: int, seed: int) -> Cascade:
    """An extractor of four features, and small refiners."""
    return assemble(extractor, lambda: ConcatRefiner(4, [7], CLASSES), CLASSES, num_refiners, seed).double()


class TwoFeatures(nn.Module):
    """A tuple of two trained features, and one of integers that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, 4), nn.Linear(INPUTS, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.first(x), self.second(x).tanh(), (x > 0).long()


class HiddenRefiner(nn.Module):
    """Hands on a belief and a hidden activation [B, 6], as a stage of a backbone does."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(4 + 2 + 6 + CLASSES, 6), nn.Linear(6, CLASSES)

    def forward(
        self, features: tuple[Tensor, Tensor, Tensor], state: Tensor | tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        first, second, positive = features
        log_belief, hidden = state if isinstance(state, tuple) else (state, first.new_zeros(len(first), 6))
        gate = positive.to(first.dtype).mean(1, keepdim=True)
        hidden = self.enter(torch.cat([first * gate, second, hidden, log_belief.exp()], 1)).tanh()
        return self.head(hidden), hidden


def with_hidden_state(num_refiners: int) -> Cascade:
    """Tuples for features and state."""
    return assemble(TwoFeatures, HiddenRefiner, CLASSES, num_refiners, seed=2).double()


class FloatFeatures(TwoFeatures):
    """The same, all in floating point."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second, positive = super().forward(x)
        return first, second, positive.to(first.dtype) * first.mean(1, keepdim=True)


def with_float_state(num_refiners: int) -> Cascade:
    """Tuples for features and state, through all of which gradients flow."""
    return assemble(FloatFeatures, HiddenRefiner, CLASSES, num_refiners, seed=2).double()


def residual(num_blocks: int) -> Cascade:
    """The plain network for backpropagation: an extractor of many layers, one head."""
    sizes = equal_cost(6, [7], CLASSES)
    return assemble(
        lambda: nn.Sequential(nn.Linear(INPUTS, 6), nn.Tanh(), *(ResidualBlock(6, sizes) for _ in range(num_blocks))),
        lambda: Head(6, CLASSES),
        CLASSES,
        1,
        seed=8,
    ).double()


def flat(num_refiners: int) -> Cascade:
    """An extractor whose first and third layers have no parameters; the third is there twice."""

    def extractor() -> nn.Module:  # built under its seed
        tanh = nn.Tanh()
        return nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, 6), tanh, nn.Linear(6, 6), tanh, nn.Linear(6, 4))

    return on_features(extractor, num_refiners, seed=9)


class Residual(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x).repeat(1, 1)
        return output


class TokenExtractor(nn.Module):
    """x [B, 5] to features [B, T = 5, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.embed(x.unsqueeze(-1)).tanh()
        return embedded


def tokens(num_refiners: int) -> Cascade:
    """A belief for each token: features [B, T, D], beliefs [B, T, C], labels [B, T]."""
    return on_features(TokenExtractor, num_refiners, seed=3)


class NoisyRefiner(nn.Module):
    """Dropout and batch norm: random masks and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4 + CLASSES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, CLASSES)
        )

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.cat([log_belief.exp(), features], 1))
        return logits


def noisy(num_refiners: int) -> Cascade:
    """Dropout and batch norm in the extractor and in the refiners."""
    return assemble(
        lambda: nn.Sequential(nn.Linear(INPUTS, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 4)),
        NoisyRefiner,
        CLASSES,
        num_refiners,
        seed=4,
    ).double()


class NormalisedRefiner(nn.Module):
    """Batch norm, and no random numbers."""

    def __init__(self) -> None:
        super().__init__()
        norms = nn.BatchNorm1d(8, momentum=None), nn.BatchNorm1d(5, track_running_stats=False)
        self.layers = nn.Sequential(
            nn.Linear(4 + CLASSES, 8), norms[0], nn.ReLU(), nn.Linear(8, 5), norms[1], nn.Linear(5, CLASSES)
        )

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.cat([log_belief.exp(), features], 1))
        return logits


def normalised_features() -> nn.Module:
    """An extractor with two kinds of batch norm."""
    norms = nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False, momentum=None)
    return nn.Sequential(nn.Linear(INPUTS, 6), norms[0], nn.Tanh(), nn.Linear(6, 6), norms[1], nn.Linear(6, 4))


def normalised_extractor(num_refiners: int) -> Cascade:
    """Batch norm in the extractor alone."""
    return on_features(normalised_features, num_refiners, seed=10)


def normalised(num_refiners: int) -> Cascade:
    """Batch norm in the extractor and in the refiners."""
    return assemble(normalised_features, NormalisedRefiner, CLASSES, num_refiners, seed=11).double()


def batch(size: int, tokens_per_sample: int | None = None) -> tuple[Tensor, Tensor]:
    """x [B, 5] and labels [B] or [B, T]; the same on every rank that calls it."""
    generator = torch.Generator().manual_seed(size)
    shape = (size,) if tokens_per_sample is None else (size, tokens_per_sample)
    x = torch.randn(size, INPUTS, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, shape, generator=generator)


def convolutional() -> Cascade:
    """Images [B, 2, 4, 4] through convolutions; five refiners."""
    return assemble(
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, 4)
        ),
        lambda: ConcatRefiner(4, [7], CLASSES),
        CLASSES,
        5,
        seed=6,
    ).double()


class Masked(ConcatRefiner):
    """Drops a third of its logits."""

    def __init__(self) -> None:
        super().__init__(4, [7], CLASSES)

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(features, log_belief), 0.3, self.training)


def with_dropout(num_refiners: int) -> Cascade:
    """Random masks in the refiners alone."""
    return assemble(lambda: nn.Linear(INPUTS, 4), Masked, CLASSES, num_refiners, seed=7).double()
