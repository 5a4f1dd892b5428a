"""What a network that is known by name says of itself."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from sidpar.config.groups.model import SIZES


@dataclass(frozen=True)
class Backbone:
    """A network in the form that small images need. Its modules are named as torchvision names them, so that weights
    of such networks fit by name."""

    name: str
    build: Callable[..., nn.Module]
    """From image_shape, num_classes and `sizes` by keyword; it returns logits. Raises UsageError for other images."""
    classifier: str
    """The module that makes logits of pooled features [B, D]."""

    @property
    def sizes(self) -> dict[str, int]:
        """The settings that it reads, width and depth, and their defaults."""
        parameters = inspect.signature(self.build).parameters
        return {name: parameters[name].default for name in SIZES if name in parameters}
