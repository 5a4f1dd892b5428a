"""What a user's own module may hold: builders that work, and builders that do not."""

import os
import sys
from typing import Any

import torch
from torch import Tensor, nn

from sidpar import Cascade

Shape = tuple[int, int, int]


class Views(nn.Module):
    """Images [B, channels, H, W] to a tuple of two features."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(pixels, width), nn.Linear(pixels, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        return self.first(x).relu(), self.second(x).tanh()


class Passing(nn.Module):
    """Hands on a tuple of logits and a hidden activation."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(2 * width + 2 + num_classes, width), nn.Linear(width, num_classes)

    def forward(self, features: tuple[Tensor, Tensor], state: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        first, second = features
        log_belief, hidden = state if isinstance(state, tuple) else (state, torch.zeros_like(first))
        hidden = self.enter(torch.cat([first, second, hidden, log_belief.exp()], 1)).relu()
        return self.head(hidden), hidden


def build(image_shape: Shape, num_classes: int, num_refiners: int, seed: int, width: int = 24) -> Cascade:
    """Tuples for features and state."""
    channels, height, breadth = image_shape
    refiners = [Passing(width, num_classes) for _ in range(num_refiners)]
    return Cascade(Views(channels * height * breadth, width), refiners, num_classes)


def sequential(image_shape: Shape, num_classes: int, num_refiners: int, seed: int) -> Cascade:
    """An extractor whose layers a pipeline can cut."""
    channels, height, breadth = image_shape
    extractor = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * breadth, 16), nn.ReLU())
    return Cascade(extractor, [Reader(num_classes) for _ in range(num_refiners)], num_classes)


class Reader(nn.Module):
    """The simplest refiner of 16 features."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(16 + num_classes, num_classes)

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.layer(torch.cat([features, log_belief.exp()], 1))
        return logits


def raises(**_: Any) -> Cascade:
    raise KeyError("the builder's own mistake")


def too_few(image_shape: Shape) -> Cascade:
    raise AssertionError("never called")


def no_cascade(**_: Any) -> nn.Module:
    return nn.Linear(2, 2)


def other_classes(**settings: Any) -> Cascade:
    return build(**settings | {"num_classes": 7})


def other_refiners(**settings: Any) -> Cascade:
    return build(**settings | {"num_refiners": 3})


def other_images(**settings: Any) -> Cascade:
    return build(**settings | {"image_shape": (3, 32, 32)})


def tokens(num_classes: int, num_refiners: int, **_: Any) -> Cascade:
    """A belief for each row of a grey image."""
    return Cascade(nn.Flatten(1, 2), [Rows(num_classes) for _ in range(num_refiners)], num_classes)


class Rows(nn.Module):
    """Features [B, H, W] to logits [B, H, C]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(8, num_classes)

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.layer(features)
        return logits


def unseeded(**settings: Any) -> Cascade:
    """Other weights in every process."""
    torch.manual_seed(os.getpid())
    return build(**settings)


def ends(**_: Any) -> Cascade:
    """A script that was made a builder."""
    sys.exit(0)


def in_double(**settings: Any) -> Cascade:
    return build(**settings).double()


def in_half(**settings: Any) -> Cascade:
    cascade = build(**settings)
    cascade.refiners[1].half()
    return cascade


def lazy(num_classes: int, num_refiners: int, **_: Any) -> Cascade:
    """Its first layer has no sizes."""
    extractor = nn.Sequential(nn.Flatten(), nn.LazyLinear(16))
    return Cascade(extractor, [Reader(num_classes) for _ in range(num_refiners)], num_classes)


class Remembering(Passing):
    """Saves more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


def with_extra_state(**settings: Any) -> Cascade:
    cascade = build(**settings)
    cascade.refiners[1] = Remembering(24, settings["num_classes"])
    return cascade


class Normalised(Reader):
    """Keeps running statistics."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = nn.BatchNorm1d(num_classes)

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.norm(super().forward(features, log_belief))
        return logits


def partly_normalised(**settings: Any) -> Cascade:
    """The last two refiners are unlike the others."""
    cascade = sequential(**settings)
    for i in range(len(cascade.refiners) - 2, len(cascade.refiners)):
        cascade.refiners[i] = Normalised(settings["num_classes"])
    return cascade


def normalised(**settings: Any) -> Cascade:
    """Batch norm everywhere."""
    cascade, num_classes = sequential(**settings), settings["num_classes"]
    cascade.extractor.append(nn.BatchNorm1d(16))
    return Cascade(cascade.extractor, [Normalised(num_classes) for _ in cascade.refiners], num_classes)


class WithEmpty(Reader):
    """Has a parameter without elements."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.prompts = nn.Parameter(torch.zeros(0, 4))

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        return super().forward(features, log_belief) + self.prompts.sum()


def with_empty(**settings: Any) -> Cascade:
    cascade = sequential(**settings)
    cascade.refiners[1] = WithEmpty(settings["num_classes"])
    return cascade


def with_spare(**settings: Any) -> Cascade:
    """A refiner has a layer that it does not use."""
    cascade = sequential(**settings)
    cascade.refiners[1].add_module("spare", nn.Linear(2, 2))
    return cascade


class Made:
    """Callable without being a function."""

    def __call__(self, **settings: Any) -> Cascade:
        return build(**settings)


made = Made()
NUMBER = 3


class FailingLater(Passing):
    """Its logits are no numbers from the sixth training batch of 200 images on."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, features: tuple[Tensor, Tensor], state: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        logits, hidden = super().forward(features, state)
        if self.training and not logits.is_meta:
            self.calls += 1
            logits = logits + torch.where(self.calls >= 6, torch.nan, 0.0)
        return logits, hidden


def failing(image_shape: Shape, num_classes: int, num_refiners: int, seed: int) -> Cascade:
    """Refiner 2 fails."""
    cascade = build(image_shape, num_classes, num_refiners, seed)
    cascade.refiners[2] = FailingLater(24, num_classes)
    return cascade


class Counting(Reader):
    """Counts its forwards in an attribute."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.count = 0

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        self.count += self.training
        return super().forward(features, log_belief) / (1 + self.count)


def counting(image_shape: Shape, num_classes: int, num_refiners: int, seed: int) -> Cascade:
    """What refiners keep is in no checkpoint."""
    cascade = sequential(image_shape, num_classes, num_refiners, seed)
    return Cascade(cascade.extractor, [Counting(num_classes) for _ in range(num_refiners)], num_classes)
