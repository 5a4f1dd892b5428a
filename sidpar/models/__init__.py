"""The networks that come with sidpar, and the user's own.

May import: config, cascade.
Start reading: base.py, what a network says of itself; simple_cnn.py, the paper's.
"""

from dataclasses import replace

from sidpar.config.groups.checks import check_options, check_types, known, without_effect
from sidpar.config.groups.compute import Compute
from sidpar.config.groups.model import BUILDER_KEYWORDS, ModelConfig
from sidpar.errors import UsageError
from sidpar.models.base import Model
from sidpar.models.plain import PLAIN_CNN, PLAIN_MLP
from sidpar.models.simple_cnn import SIMPLE_CNN
from sidpar.models.wide_mlp import WIDE_MLP

MODELS: dict[str, Model] = {model.name: model for model in (SIMPLE_CNN, WIDE_MLP, PLAIN_CNN, PLAIN_MLP)}
DEFAULT = SIMPLE_CNN.name
SIZES = ("width", "depth")
"""Settings of networks that have a key of their own in the configuration."""


def forms_beliefs(config: ModelConfig) -> bool:
    """Whether the network has beliefs for local learning. A user's own network always has."""
    return config.builder is not None or known("model.name", config.name or DEFAULT, MODELS).has_beliefs


def complete(config: ModelConfig, compute: Compute) -> ModelConfig:
    """The settings of `model` with their defaults filled in. Raises UsageError for settings that the named network does
    not read."""
    if config.builder is not None:
        return replace(config, options=config.options or {})
    name = config.name or DEFAULT
    model = known("model.name", name, MODELS)
    settings = model.settings
    unread = [size for size in SIZES if size not in settings]
    without_effect("model", config, unread, f"model.name={name} has fixed sizes")
    options = config.options or {}
    for size in SIZES:
        if size in options and size in settings:
            raise UsageError(f"model.options.{size} has a key of its own: set model.{size}={options[size]}")
    check_options("model.options", options, f"model.name={name}", model.build, [*BUILDER_KEYWORDS, *SIZES])
    check_types("model.options", options, model.build)
    if not model.has_convolutions:
        without_effect("compute", compute, ["channels_last"], f"model.name={name} has no convolutions")
    left_open = {size: settings[size] for size in SIZES if size in settings and getattr(config, size) is None}
    return replace(config, name=name, **left_open)
