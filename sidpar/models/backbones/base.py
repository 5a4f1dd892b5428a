"""What a network that is known by name says of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Backbone:
    """A network in the form that small images need. Its modules are named as torchvision names them, so that weights
    of such networks fit by name."""

    name: str
    build: Callable[..., nn.Module]
    """From image_shape, num_classes and `sizes` by keyword; it returns logits. Raises UsageError for other images."""
    classifier: str
    """The module that makes logits of pooled features [B, D]."""
    sizes: Mapping[str, int]
    """The settings that it reads, width and depth, and their defaults."""
