"""The network."""

import re
from dataclasses import dataclass

from sidpar.config.groups.checks import at_least, without_effect
from sidpar.config.groups.choices import BeliefEntry, HeadName, HiddenLayout, Option, Pooling
from sidpar.errors import UsageError

BUILDER_KEYWORDS = ("image_shape", "num_classes", "num_refiners", "seed")
"""What every network is built from; `model.options` adds to them."""
DEFAULT_REFINERS = 8
CUTTING = ("points", "extractor_share", "head", "pool", "belief", "reads_features", "layout", "carry")
"""Settings of networks that are cut."""
START = ("weights", "freeze")
"""What a network starts from that is known by name."""
SIZES = ("width", "depth")


@dataclass(frozen=True)
class ModelConfig:
    """The cascade."""

    name: str | None = None
    """simple_cnn (the default): the paper's; wide_mlp: refiners that are heavy; plain_cnn, plain_mlp: networks of the
    same cost for backpropagation, residual blocks without beliefs in between; resnet18, vgg11, vgg11_bn, vit_tiny: in
    their forms for small images, cut at model.points."""
    builder: str | None = None
    """Instead of a name, a function of your own, package.module:function. It is called with image_shape, num_classes,
    num_refiners, seed and model.options, all by keyword, and returns a sidpar.Cascade."""
    backbone: str | None = None
    """Instead of a name, a network of torchvision or timm, torchvision:resnet50, cut at model.points; model.options are
    keywords of the library's function."""
    extractor: str | None = None
    """Instead of a name, resnet18, vgg11, vgg11_bn or vit_tiny as a whole, followed by L of the paper's refiners on its
    pooled features."""
    options: dict[str, Option] | None = None
    """Further settings of the network: keywords of the builder, numbers, texts, true or false, or lists of these; by
    default none."""
    num_refiners: int | None = None
    """L; in plain networks, the number of blocks. By default as many as model.points; without points 4 in a network
    that is cut, and 8 in others."""
    width: int | None = None
    """wide_mlp and plain_mlp: features and hidden units of each refiner; by default 1024. resnet18, vgg11, vgg11_bn:
    channels of the first convolution, by default 64. vit_tiny: of a token, by default 192."""
    depth: int | None = None
    """wide_mlp and plain_mlp: hidden layers of each refiner; by default 2. vit_tiny: blocks, by default 12."""
    points: list[str] | None = None
    """Of a network that is cut: the modules before which it is, by name, [layer2, layer3]. The extractor is what lies
    before the first one. By default L points between which the refiners cost alike."""
    extractor_share: float | None = None
    """Without model.points: share of the network's multiply-adds that the extractor has, in (0, 1); by default
    1/(L + 1). Networks learn best with about half of them."""
    head: HeadName | None = None
    """From a hidden activation to a belief: linear, mlp, conv (one convolution) or strided (convolutions down to 4x4
    positions), each on means over positions. By default strided on images, linear on tokens. The last refiner has the
    network's own classifier."""
    pool: Pooling | None = None
    """head=linear and mlp on tokens: their mean (the default), or class, the first one."""
    belief: BeliefEntry | None = None
    """How the belief before enters: residual, logits = log p_{i-1} + correction (the default); concat, by a linear map
    of its probabilities; none."""
    reads_features: bool | None = None
    """Whether every refiner but the first also reads the extractor's features, averaged to the size of its hidden
    activation; by default false."""
    layout: HiddenLayout | None = None
    """Where hidden activations have their channels, where their proportions do not tell."""
    carry: bool | None = None
    """Whether connections that a cut divides travel in the state, detached; by default false, they are refused."""
    weights: str | None = None
    """A local file of weights, .pth or .safetensors, that a network starts from which is known by name. A classifier of
    another number of classes begins anew."""
    freeze: list[str] | None = None
    """Modules of such a network that are not trained, by name, [conv1, layer1]."""

    def __post_init__(self) -> None:
        for name in ("num_refiners", *SIZES):
            if getattr(self, name) is not None:
                at_least(f"model.{name}", getattr(self, name), 1)
        for source in ("builder", "backbone", "extractor"):
            if getattr(self, source) is not None:
                self._check_alone(source)
        if self.builder is not None:
            self._check_builder()
        if self.backbone is not None and not re.fullmatch(r"(torchvision|timm):[\w.\-/]+", self.backbone):
            raise UsageError(
                "model.backbone must be torchvision:NAME or timm:NAME, such as torchvision:resnet50, got "
                f"{self.backbone!r}"
            )
        self._check_points()

    @property
    def refiners(self) -> int:
        """L, which is decided by `models.complete`."""
        assert self.num_refiners is not None
        return self.num_refiners

    @property
    def network(self) -> str | None:
        """What names the network."""
        return self.name or self.builder or self.backbone or self.extractor

    def _check_alone(self, source: str) -> None:
        """Refuse what another network would read."""
        unread = {"builder": [*SIZES, *CUTTING, *START], "backbone": SIZES, "extractor": CUTTING}[source]
        others = [other for other in ("name", "builder", "backbone", "extractor") if other != source]
        reason = f"model.{source}={getattr(self, source)} makes the network"
        without_effect("model", self, [*others, *unread], reason)

    def _check_points(self) -> None:
        if self.extractor_share is not None and not 0 < self.extractor_share < 1:
            raise UsageError(f"model.extractor_share must lie in (0, 1), got {self.extractor_share}")
        if self.points is None:
            return
        without_effect("model", self, ["extractor_share"], "model.points say where the extractor ends")
        if not self.points or len(set(self.points)) < len(self.points):
            raise UsageError(f"model.points must name at least one module, and none twice, got {self.points}")
        if self.num_refiners not in (None, len(self.points)):
            raise UsageError(
                f"model.points names {len(self.points)} modules, which makes {len(self.points)} refiners, but "
                f"model.num_refiners={self.num_refiners}: leave that out, or name as many"
            )

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
