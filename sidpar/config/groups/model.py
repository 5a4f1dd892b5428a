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
            raise UsageError(f"model.options are keywords of the builder, and {key!r} is none: rename it")
        if key in BUILDER_KEYWORDS:
            raise UsageError(f"model.options.{key}={value}: the builder is given {key} anyway; remove it")
        if isinstance(value, str) and value.startswith("{"):  # jsonargparse takes a mapping for a text
            raise UsageError(
                f"model.options.{key} must be a number, a text, true or false, or a list of these, got {value}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The cascade."""

    name: str | None = None
    """simple_cnn (the default): the paper's; wide_mlp: refiners that are heavy; plain_cnn, plain_mlp: networks of the
    same cost for backpropagation, residual blocks without beliefs in between."""
    builder: str | None = None
    """Instead of a name, a function of your own, package.module:function. It is called with image_shape, num_classes,
    num_refiners, seed and model.options, all by keyword, and returns a sidpar.Cascade."""
    options: dict[str, Option] | None = None
    """Further settings of the network: keywords of the builder, numbers, texts, true or false, or lists of these; by
    default none."""
    num_refiners: int = 8
    """L; in plain networks, the number of blocks."""
    width: int | None = None
    """wide_mlp and plain_mlp: features and hidden units of each refiner; by default 1024."""
    depth: int | None = None
    """wide_mlp and plain_mlp: hidden layers of each refiner; by default 2."""

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
        Refusal(("model.builder",), "a text that is not package.module:function", _check_builder),
        Refusal(
            ("model.options",),
            f"with model.builder, names that are not keywords, {', '.join(BUILDER_KEYWORDS)}, and mappings as values",
            _check_options,
        ),
        *less_than(1, "model.width", "model.depth"),
    )

    def __post_init__(self) -> None:
        refuse(self, self.REFUSALS)
