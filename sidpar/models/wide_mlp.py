"""A network with large refiners, so that placing them on ranks pays."""

from torch import nn

from sidpar.cascade.cascade import Cascade
from sidpar.models.assembly import assemble
from sidpar.models.base import Model
from sidpar.models.concat_refiner import ConcatRefiner


def wide_mlp(
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_refiners: int,
    *,
    width: int = 1024,
    depth: int = 2,
    seed: int = 0,
) -> Cascade:
    """A small extractor, and refiners with `depth` hidden layers of `width` units."""
    return assemble(
        lambda: flat_extractor(image_shape, width),
        lambda: ConcatRefiner(width, [width] * depth, num_classes),
        num_classes,
        num_refiners,
        seed,
    )


def flat_extractor(image_shape: tuple[int, int, int], width: int) -> nn.Sequential:
    """Images to features [B, width] by one linear layer."""
    channels, height, breadth = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * breadth, width), nn.ReLU())


WIDE_MLP = Model("wide_mlp", wide_mlp, has_convolutions=False)
