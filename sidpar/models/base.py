"""The description of a network that comes with sidpar."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.model import BUILDER_KEYWORDS, DEFAULT_REFINERS


@dataclass(frozen=True)
class Model:
    """A network by name: a file of this package and a line in its registry."""

    name: str
    build: Callable[..., Cascade]
    """Called with image_shape, num_classes, num_refiners and, by keyword, seed and `settings`."""
    has_beliefs: bool = True
    """Whether its refiners form beliefs one after another, so that they can learn locally."""
    has_convolutions: bool = True
    """Whether compute.channels_last has an effect."""
    num_refiners: int = DEFAULT_REFINERS
    """L, by default."""
    reads: Mapping[str, Any] | None = None
    """The settings of `model` that `build` takes, and their defaults, where its signature does not tell."""
    takes_options: Callable[..., nn.Module] | None = None
    """The function whose keywords model.options are, by default `build`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that `build` takes, and their defaults."""
        if self.reads is not None:
            return self.reads
        parameters = inspect.signature(self.build).parameters.items()
        return {name: parameter.default for name, parameter in parameters if name not in BUILDER_KEYWORDS}
