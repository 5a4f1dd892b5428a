"""Plain networks for backpropagation, to compare with: residual, without beliefs and softmax between their modules."""

from collections.abc import Callable

from torch import nn

from sidpar.cascade.cascade import Cascade
from sidpar.models.assembly import assemble
from sidpar.models.base import Model
from sidpar.models.residual_block import Head, ResidualBlock, equal_cost
from sidpar.models.simple_cnn import simple_cnn_extractor
from sidpar.models.wide_mlp import flat_extractor


def plain_cnn(image_shape: tuple[int, int, int], num_classes: int, num_refiners: int, *, seed: int = 0) -> Cascade:
    """A residual network of SimpleCNN's cost without beliefs between the modules, for backpropagation."""
    return _plain(lambda: simple_cnn_extractor(image_shape[0]), 128, [256], num_classes, num_refiners, seed)


def plain_mlp(
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_refiners: int,
    *,
    width: int = 1024,
    depth: int = 2,
    seed: int = 0,
) -> Cascade:
    """A residual network of wide_mlp's cost without beliefs between the modules, for backpropagation."""
    return _plain(lambda: flat_extractor(image_shape, width), width, [width] * depth, num_classes, num_refiners, seed)


def _plain(
    extractor: Callable[[], nn.Sequential],
    width: int,
    hidden: list[int],
    num_classes: int,
    num_blocks: int,
    seed: int,
) -> Cascade:
    """Residual blocks in place of refiners, each of a refiner's cost, at the end of the extractor; then one head."""
    sizes = equal_cost(width, hidden, num_classes)
    return assemble(
        lambda: nn.Sequential(*extractor(), *(ResidualBlock(width, sizes) for _ in range(num_blocks))),
        lambda: Head(width, num_classes),
        num_classes,
        1,
        seed,
    )


PLAIN_CNN = Model("plain_cnn", plain_cnn, has_beliefs=False)
PLAIN_MLP = Model("plain_mlp", plain_mlp, has_beliefs=False, has_convolutions=False)
