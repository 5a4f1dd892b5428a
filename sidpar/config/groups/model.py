"""The network."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sidpar.config.groups.choices import Option
from sidpar.config.groups.refusals import Refusal, less_than, refuse, unread
from sidpar.errors import UsageError

BUILDER_KEYWORDS = ("image_shape", "num_classes", "num_refiners", "seed")
"""What every network is built from; `model.options` adds to them."""


def _check_builder(model: Any) -> None:
    if model.builder is None:
        return
    module, colon, function = model.builder.partition(":")
    if not (colon and function.isidentifier() and all(name.isidentifier() for name in module.split("."))):
        raise UsageError(f"model.builder must be package.module:function, such as mynet:build, got {model.builder!r}")


def _check_options(model: Any) -> None:
    if model.builder is None:  # of a named network, `models.complete` knows the options
        return
    for key, value in (model.options or {}).items():
        if not isinstance(key, str) or not key.isidentifier():
            raise UsageError(
                f"keys of model.options become keywords, so they must be Python names, got {key!r}: rename it"
            )
        if key in BUILDER_KEYWORDS:
            raise UsageError(f"model.options.{key}={value}: the builder is given {key} in any case; remove it")
        if isinstance(value, str) and value.startswith("{"):  # jsonargparse takes a mapping for a string
            raise UsageError(
                f"model.options.{key} must be a number, a string, true or false, or a list of these, got {value}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The network: a cascade of one extractor and L refiners."""

    name: str | None = None
    """simple_cnn (the default): the paper's network; wide_mlp: a network with large refiners; plain_cnn, plain_mlp:
    residual networks of the same cost without beliefs in between, for backpropagation."""
    builder: str | None = None
    """Instead of model.name, a function of your own, given as package.module:function. It is called with the keywords
    image_shape, num_classes, num_refiners, seed and those of model.options, and returns a sidpar.Cascade."""
    options: dict[str, Option] | None = None
    """More keywords for the builder or the named network: numbers, strings, true or false, or lists of these; by
    default none."""
    num_refiners: int = 8
    """Number of refiners L; in plain networks, the number of residual blocks."""
    width: int | None = None
    """wide_mlp and plain_mlp: number of features, and of units in each hidden layer; by default 1024."""
    depth: int | None = None
    """wide_mlp and plain_mlp: number of hidden layers in each refiner or block; by default 2."""

    UNITS = MappingProxyType({"num_refiners": "refiners", "width": "features", "depth": "layers"})
    REFUSALS = (
        *less_than(1, "model.num_refiners"),
        unread(
            "with model.builder",
            lambda model: f"model.builder={model.builder} makes the network",
            "model.name",
            "model.width",
            "model.depth",
            when=lambda model: model.builder is not None,
        ),
        Refusal(("model.builder",), "a string that is not package.module:function", _check_builder),
        Refusal(
            ("model.options",),
            f"with model.builder: mappings as values, names that are not keywords, and {', '.join(BUILDER_KEYWORDS)}",
            _check_options,
        ),
        *less_than(1, "model.width", "model.depth"),
    )

    def __post_init__(self) -> None:
        refuse(self, self.REFUSALS)
