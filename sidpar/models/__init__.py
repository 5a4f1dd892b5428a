"""The networks that come with sidpar, and the user's own.

May import: config, cascade, models.backbones, models.cutting.
Start reading: base.py, what a network says of itself; simple_cnn.py, the paper's.
"""

from dataclasses import replace
from typing import Any

from sidpar.config.groups.checks import check_options, check_types, known, without_effect
from sidpar.config.groups.compute import Compute
from sidpar.config.groups.model import (
    BUILDER_KEYWORDS,
    CUTTING,
    DEFAULT_REFINERS,
    SIZES,
    START,
    ModelConfig,
)
from sidpar.errors import UsageError
from sidpar.models.backbones.resnet import RESNET18
from sidpar.models.backbones.vgg import VGG11_BN, VGG11_PLAIN
from sidpar.models.backbones.vit import VIT_TINY
from sidpar.models.base import Model
from sidpar.models.cut_networks import cut_model, extractor_model, library_model
from sidpar.models.plain import PLAIN_CNN, PLAIN_MLP
from sidpar.models.simple_cnn import SIMPLE_CNN
from sidpar.models.wide_mlp import WIDE_MLP

BACKBONES = (RESNET18, VGG11_PLAIN, VGG11_BN, VIT_TINY)
MODELS: dict[str, Model] = {
    model.name: model for model in (SIMPLE_CNN, WIDE_MLP, PLAIN_CNN, PLAIN_MLP, *map(cut_model, BACKBONES))
}
EXTRACTORS: dict[str, Model] = {backbone.name: extractor_model(backbone) for backbone in BACKBONES}
DEFAULT = SIMPLE_CNN.name
SETTINGS = (*SIZES, *CUTTING, *START)
"""Settings of networks that have a key of their own in the configuration."""


def named_model(config: ModelConfig) -> tuple[str, Model]:
    """The configured network, unless a builder makes it, and the setting that names it. Raises UsageError."""
    if config.backbone is not None:
        return f"model.backbone={config.backbone}", library_model(config.backbone)
    if config.extractor is not None:
        return f"model.extractor={config.extractor}", known("model.extractor", config.extractor, EXTRACTORS)
    name = config.name or DEFAULT
    return f"model.name={name}", known("model.name", name, MODELS)


def forms_beliefs(config: ModelConfig) -> bool:
    """Whether the network has beliefs for local learning. A user's own network always has."""
    return config.builder is not None or named_model(config)[1].has_beliefs


def complete(config: ModelConfig, compute: Compute) -> ModelConfig:
    """The settings of `model` with their defaults filled in. Raises UsageError for settings that the named network does
    not read."""
    options = config.options or {}
    if config.builder is not None:
        return replace(config, options=options, num_refiners=config.num_refiners or DEFAULT_REFINERS)
    named, model = named_model(config)
    settings = model.settings
    for names, reason in ((SIZES, "has fixed sizes"), (CUTTING, "is not cut"), (START, "starts from random weights")):
        without_effect("model", config, [name for name in names if name not in settings], f"{named} {reason}")
    for name in SETTINGS:
        if name in options and name in settings:
            raise UsageError(f"model.options.{name} has a key of its own: set model.{name}={options[name]}")
    function = model.takes_options or model.build
    check_options("model.options", options, named, function, [*BUILDER_KEYWORDS, *SETTINGS])
    check_types("model.options", options, function)
    if not model.has_convolutions:
        without_effect("compute", compute, ["channels_last"], f"{named} has no convolutions")
    num_refiners = config.num_refiners or len(config.points or ()) or model.num_refiners
    left_open: dict[str, Any] = {name: default for name, default in settings.items() if getattr(config, name) is None}
    if config.network is None:
        left_open["name"] = DEFAULT
    return replace(config, num_refiners=num_refiners, **left_open)
