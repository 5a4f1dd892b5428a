"""The network."""

from dataclasses import dataclass

from sidpar.config.groups.checks import at_least, without_effect
from sidpar.config.groups.choices import Option
from sidpar.errors import UsageError

BUILDER_KEYWORDS = ("image_shape", "num_classes", "num_refiners", "seed")
"""What every network is built from; `model.options` adds to them."""


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

    def __post_init__(self) -> None:
        at_least("model.num_refiners", self.num_refiners, 1)
        if self.builder is not None:
            reason = f"model.builder={self.builder} makes the network"
            without_effect("model", self, ["name", "width", "depth"], reason)
            self._check_builder()
        for name in ("width", "depth"):
            if getattr(self, name) is not None:
                at_least(f"model.{name}", getattr(self, name), 1)

    def _check_builder(self) -> None:
        module, colon, function = str(self.builder).partition(":")
        if not (colon and function.isidentifier() and all(name.isidentifier() for name in module.split("."))):
            raise UsageError(
                f"model.builder must be package.module:function, such as mynet:build, got {self.builder!r}"
            )
        for key, value in (self.options or {}).items():
            if not isinstance(key, str) or not key.isidentifier():
                raise UsageError(f"model.options are keywords of the builder, and {key!r} is none: rename it")
            if key in BUILDER_KEYWORDS:
                raise UsageError(f"model.options.{key}={value}: the builder is given {key} anyway; remove it")
            if isinstance(value, str) and value.startswith("{"):  # jsonargparse takes a mapping for a text
                raise UsageError(
                    f"model.options.{key} must be a number, a text, true or false, or a list of these, got {value}"
                )
