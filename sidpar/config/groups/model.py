"""The network."""

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sidpar.config.groups.choices import BeliefEntry, HeadName, HiddenLayout, Option, Pooling
from sidpar.config.groups.refusals import Refusal, less_than, outside, refuse, unread
from sidpar.errors import UsageError

BUILDER_KEYWORDS = ("image_shape", "num_classes", "num_refiners", "seed")
"""What every network is built from; `model.options` adds to them."""
DEFAULT_REFINERS = 8
SIZES = ("width", "depth")
CUTTING = ("points", "extractor_share", "head", "pool", "belief", "reads_features", "layout", "carry")
"""Settings of networks that are cut."""
START = ("weights", "freeze")
"""Settings of networks that may start from weights in a file."""


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


def _check_backbone(model: Any) -> None:
    if model.backbone is not None and not re.fullmatch(r"(torchvision|timm):[\w.\-/]+", model.backbone):
        raise UsageError(
            "model.backbone must be torchvision:NAME or timm:NAME, such as torchvision:resnet50, got "
            f"{model.backbone!r}"
        )


def _check_points(model: Any) -> None:
    if model.points is not None and (not model.points or len(set(model.points)) < len(model.points)):
        raise UsageError(f"model.points must name at least one module, and none twice, got {model.points}")


def _check_number(model: Any) -> None:
    if model.points is not None and model.num_refiners not in (None, len(model.points)):
        raise UsageError(
            f"model.points names {len(model.points)} modules, which makes {len(model.points)} refiners, but "
            f"model.num_refiners={model.num_refiners}: remove it, or give as many points"
        )


def _made_by(source: str, *names: str) -> Refusal:
    """What is not read where another setting says what makes the network."""
    return unread(
        f"with model.{source}",
        lambda model: f"model.{source}={getattr(model, source)} makes the network",
        *(f"model.{name}" for name in names),
        when=lambda model: getattr(model, source) is not None,
    )


@dataclass(frozen=True)
class ModelConfig:
    """The network: a cascade of one extractor and L refiners."""

    name: str | None = None
    """simple_cnn (the default): the paper's network; wide_mlp: a network with large refiners; plain_cnn, plain_mlp:
    residual networks of the same cost without beliefs in between, for backpropagation; resnet18, vgg11, vgg11_bn,
    vit_tiny: networks in their forms for small images, cut at model.points."""
    builder: str | None = None
    """Instead of model.name, a function of your own, given as package.module:function. It is called with the keywords
    image_shape, num_classes, num_refiners, seed and those of model.options, and returns a sidpar.Cascade."""
    backbone: str | None = None
    """Instead of model.name, a network of torchvision or timm such as torchvision:resnet50, cut at model.points.
    model.options are keywords of the library's function."""
    extractor: str | None = None
    """Instead of model.name, one of resnet18, vgg11, vgg11_bn and vit_tiny as a whole, followed by L of the paper's
    refiners on its pooled features."""
    options: dict[str, Option] | None = None
    """More keywords for the builder or the named network: numbers, strings, true or false, or lists of these; by
    default none."""
    num_refiners: int | None = None
    """Number of refiners L; in plain networks, the number of residual blocks. By default 8; in a network that is cut,
    the number of model.points, and 4 without them."""
    width: int | None = None
    """wide_mlp and plain_mlp: number of features, and of units in each hidden layer, by default 1024. resnet18, vgg11,
    vgg11_bn: channels of the first convolution, by default 64. vit_tiny: features of a token, by default 192."""
    depth: int | None = None
    """wide_mlp and plain_mlp: number of hidden layers in each refiner or block, by default 2. vit_tiny: number of
    blocks, by default 12."""
    points: list[str] | None = None
    """The names of the modules before which a network is cut, such as [layer2, layer3]. The extractor ends before the
    first one. By default, L points between which the refiners cost alike."""
    extractor_share: float | None = None
    """Without model.points, the extractor's share of the network's arithmetic; by default 1/(L + 1). A half often
    learns best."""
    head: HeadName | None = None
    """What turns a hidden activation into a belief: a linear layer on its mean over positions (linear), two layers
    (mlp), a convolution before them (conv), or strided convolutions down to 4x4 positions (strided). By default strided
    on images and linear on tokens. The last refiner has the network's own classifier."""
    pool: Pooling | None = None
    """linear and mlp on tokens: mean, their mean (the default), or class, the first token."""
    belief: BeliefEntry | None = None
    """How the previous belief enters: residual, as logits = log p_{i-1} + correction (the default); concat, through a
    linear map of its probabilities; none."""
    reads_features: bool | None = None
    """Add the extractor's features, averaged to its size, to the hidden activation of every refiner but the first; by
    default false."""
    layout: HiddenLayout | None = None
    """Where hidden activations have their channels, in case neither their proportions nor the layers tell."""
    carry: bool | None = None
    """Let connections that a cut divides travel in the state, detached. By default false: such a cut is refused."""
    weights: str | None = None
    """A local file of weights, .pth or .safetensors, that a named network or a backbone starts from. A classifier for
    another number of classes is not loaded."""
    freeze: list[str] | None = None
    """The names of modules of such a network that are not trained, such as [conv1, layer1]."""

    UNITS = MappingProxyType(
        {
            "num_refiners": "refiners",
            "width": "features",
            "depth": "layers",
            "extractor_share": "share of the multiply-adds",
        }
    )
    REFUSALS = (
        *less_than(1, "model.num_refiners"),
        _made_by("builder", "name", "backbone", "extractor", *SIZES, *CUTTING, *START),
        _made_by("backbone", "name", "extractor", *SIZES),
        _made_by("extractor", "name", *CUTTING),
        Refusal(("model.builder",), "a string that is not package.module:function", _check_builder),
        Refusal(("model.backbone",), "a string that is not torchvision:NAME or timm:NAME", _check_backbone),
        Refusal(
            ("model.options",),
            f"with model.builder: mappings as values, names that are not keywords, and {', '.join(BUILDER_KEYWORDS)}",
            _check_options,
        ),
        *less_than(1, "model.width", "model.depth"),
        *outside("(0, 1)", "model.extractor_share"),
        unread(
            "with model.points",
            "model.points says where the extractor ends",
            "model.extractor_share",
            when=lambda model: model.points is not None,
        ),
        Refusal(("model.points",), "an empty list, and a name given twice", _check_points),
        Refusal(("model.num_refiners",), "with model.points, another number than that of the points", _check_number),
    )

    def __post_init__(self) -> None:
        refuse(self, self.REFUSALS)

    @property
    def refiners(self) -> int:
        """L, once `models.complete` has decided it."""
        assert self.num_refiners is not None
        return self.num_refiners

    @property
    def network(self) -> str | None:
        """What the network is called."""
        return self.name or self.builder or self.backbone or self.extractor
