"""ViT-Tiny (Dosovitskiy et al. 2021; its sizes: Touvron et al. 2021) for small images: patches of 4x4 pixels."""

from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from sidpar.errors import UsageError
from sidpar.models.backbones.base import Backbone

_PATCH = 4
_HEAD_WIDTH = 64


def vit_tiny(image_shape: tuple[int, int, int], num_classes: int, *, width: int = 192, depth: int = 12) -> nn.Module:
    """Square images [B, channels, H, H], H a multiple of 4, to logits [B, C]: `depth` blocks of `width` with one
    attention head for 64 of it. With 192 and 12, 0.37 G multiply-adds at 32x32."""
    channels, height, breadth = image_shape
    if height != breadth or height % _PATCH:
        raise UsageError(
            f"it cuts square images into patches of {_PATCH}x{_PATCH} pixels, but the dataset's have "
            f"{height}x{breadth}: use one whose images have equal sides, a multiple of {_PATCH}"
        )
    heads = max(1, width // _HEAD_WIDTH)
    if width % heads:
        raise UsageError(f"model.width={width} must be a multiple of {_HEAD_WIDTH}, the width of an attention head")
    network = VisionTransformer(height, _PATCH, depth, heads, width, 4 * width, num_classes=num_classes)
    if channels != network.conv_proj.in_channels:
        network.conv_proj = nn.Conv2d(channels, width, _PATCH, _PATCH)
        nn.init.trunc_normal_(network.conv_proj.weight, std=(channels * _PATCH**2) ** -0.5)
        nn.init.zeros_(network.conv_proj.bias)
    nn.init.trunc_normal_(network.heads.head.weight, std=0.02)  # torchvision's zeros give the blocks no gradient
    return network  # type: ignore[no-any-return]  # torchvision has no types


VIT_TINY = Backbone("vit_tiny", vit_tiny, "heads")
