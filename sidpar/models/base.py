"""The description of a network that comes with sidpar."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.model import BUILDER_KEYWORDS


@dataclass(frozen=True)
class Model:
    """A network that `model.name` offers: a file of this package and a line in its registry."""

    name: str
    build: Callable[..., Cascade]
    """Called with image_shape, num_classes, num_refiners and, by keyword, seed and settings that have defaults."""
    has_beliefs: bool = True
    """Whether its refiners form beliefs one after another, so that they can learn locally."""
    has_convolutions: bool = True
    """Whether compute.channels_last has an effect."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that `build` takes, and their defaults."""
        parameters = inspect.signature(self.build).parameters.items()
        return {name: parameter.default for name, parameter in parameters if name not in BUILDER_KEYWORDS}
