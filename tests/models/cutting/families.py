"""Small networks of torchvision's families, with all that is random in them, in float64; and how they are cut."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import (
    VGG,
    ConvNeXt,
    EfficientNet,
    MobileNetV2,
    ResNet,
    SwinTransformer,
    VisionTransformer,
    mobilenet_v3_small,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import make_layers

CLASSES = 5
ROWS = 4


class Family(NamedTuple):
    """A network, what it takes, and points at which it is cut besides the chosen ones."""

    build: Callable[[float], nn.Module]
    """From the share of units and of rows that dropout and stochastic depth drop."""
    side: int
    points: list[str]


def resnet(drop: float) -> nn.Module:
    return ResNet(Bottleneck, [1, 2, 1, 1], CLASSES, width_per_group=4)


def vgg(drop: float) -> nn.Module:
    with torch.device("meta"):  # its classifier alone has 120 M parameters
        network = VGG(make_layers([4, "M", 8, 8, "M", 8, "M"], batch_norm=True), CLASSES, init_weights=False)
    network.features = make_layers([4, "M", 8, 8, "M", 8, "M"], batch_norm=True)
    layers = [nn.Linear(8 * 7 * 7, 16), nn.ReLU(True), nn.Dropout(drop), nn.Linear(16, CLASSES)]
    network.classifier = nn.Sequential(*layers)
    return network


def convnext(drop: float) -> nn.Module:
    setting = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)]
    return ConvNeXt(setting, stochastic_depth_prob=drop, layer_scale=0.5, num_classes=CLASSES)


def efficientnet(drop: float) -> nn.Module:
    setting = [MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(2, 3, 2, 8, 16, 2)]
    return EfficientNet(setting, dropout=drop, stochastic_depth_prob=drop, num_classes=CLASSES, last_channel=24)


def mobilenet(drop: float) -> nn.Module:
    return MobileNetV2(CLASSES, 0.25, [[1, 16, 1, 1], [2, 24, 2, 2], [2, 32, 1, 2]], dropout=drop)


def mobilenet_v3(drop: float) -> nn.Module:
    return mobilenet_v3_small(num_classes=CLASSES, width_mult=0.25, dropout=drop)  # type: ignore[no-any-return]


def vit(drop: float) -> nn.Module:
    network = VisionTransformer(16, 4, 4, 2, 16, 32, drop, drop, CLASSES)
    nn.init.normal_(network.heads.head.weight)  # which torchvision sets to 0
    return network


def swin(drop: float) -> nn.Module:
    return SwinTransformer([4, 4], 8, [2, 2], [1, 2], [2, 2], 2.0, drop, drop, drop, CLASSES)


def sequential(drop: float) -> nn.Module:
    """A user's own, its layers known by number."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
        nn.Dropout(drop), nn.Linear(384, 16), nn.ReLU(), nn.Linear(16, CLASSES),
    )  # fmt: skip


FAMILIES = {
    "ResNet": Family(resnet, 32, ["relu", "layer2.1", "layer4"]),
    "VGG": Family(vgg, 16, ["features.2", "features.7", "classifier.1"]),
    "ConvNeXt": Family(convnext, 16, ["features.1", "features.2.1", "features.3.1"]),
    "EfficientNet": Family(efficientnet, 16, ["features.1", "features.2.1", "classifier"]),
    "MobileNetV2": Family(mobilenet, 16, ["features.1", "features.2.conv.1", "features.4"]),
    "MobileNetV3": Family(mobilenet_v3, 32, ["features.2", "features.9", "classifier.3"]),
    "ViT": Family(vit, 16, ["encoder", "encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_2.ln_2"]),
    "Swin": Family(swin, 16, ["features.1.1", "features.2", "features.3.1"]),
    "Sequential": Family(sequential, 16, ["1", "4", "8"]),
}


def built(name: str, drop: float) -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(1)
    return FAMILIES[name].build(drop).double()


def batch(name: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    side = FAMILIES[name].side
    x = torch.randn(ROWS, 3, side, side, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (ROWS,), generator=generator)


def cuts(name: str) -> list[dict[str, Any]]:
    """Settings of cuts: chosen points, and given ones, with and without what is read besides."""
    sample = batch(name)[0][:1]
    every = {"num_classes": CLASSES, "sample": sample}
    return [{"num_refiners": 2, **every}, {"points": FAMILIES[name].points, "head": "linear", **every}]


def of_the_network(found: dict[str, Any]) -> dict[str, Any]:
    """What belongs to the network of all that a cascade has, by the names it has in the network."""
    own = {}
    for name, value in found.items():
        part, _, *path = name.split(".")
        if part == "extractor":
            own[".".join(path)] = value
        elif path[0] == "layers":
            own[".".join(path[1:])] = value
    return own


def end_to_end(cascade: nn.Module, x: Tensor) -> Tensor:
    """The last refiner's logits, through everything that refiners hand on, nothing detached."""
    features: Any = cascade.extractor(x)
    state: Any = x.new_zeros(len(x), CLASSES)
    for refiner in cascade.refiners:
        state = refiner(features, state)
    return state  # type: ignore[no-any-return]
