"""The networks that come with sidpar, and the user's own.

May import: config, cascade.
Start reading: network.py.
"""

from collections.abc import Callable

from torch import nn

from sidpar.cascade.cascade import Cascade
from sidpar.models.assembly import assemble
from sidpar.models.concat_refiner import ConcatRefiner
from sidpar.models.plain import Head, ResidualBlock, equal_cost
from sidpar.models.simple_cnn import simple_cnn_extractor


def simple_cnn(image_shape: tuple[int, int, int], num_classes: int, num_refiners: int, *, seed: int = 0) -> Cascade:
    """The paper's SimpleCNN with L = `num_refiners`, for images [channels, H, W]."""
    return assemble(
        lambda: simple_cnn_extractor(image_shape[0]),
        lambda: ConcatRefiner(128, [256], num_classes),
        num_classes,
        num_refiners,
        seed,
    )


def wide_mlp(
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_refiners: int,
    *,
    width: int = 1024,
    depth: int = 2,
    seed: int = 0,
) -> Cascade:
    """A light extractor, and refiners with `depth` hidden layers of `width` units: placing them matters."""
    return assemble(
        lambda: _flat_extractor(image_shape, width),
        lambda: ConcatRefiner(width, [width] * depth, num_classes),
        num_classes,
        num_refiners,
        seed,
    )


def plain_cnn(image_shape: tuple[int, int, int], num_classes: int, num_blocks: int, *, seed: int = 0) -> Cascade:
    """SimpleCNN's arithmetic without beliefs between the modules, for backpropagation."""
    return _plain(lambda: simple_cnn_extractor(image_shape[0]), 128, [256], num_classes, num_blocks, seed)


def plain_mlp(
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_blocks: int,
    *,
    width: int = 1024,
    depth: int = 2,
    seed: int = 0,
) -> Cascade:
    """wide_mlp's arithmetic without beliefs between the modules, for backpropagation."""
    return _plain(lambda: _flat_extractor(image_shape, width), width, [width] * depth, num_classes, num_blocks, seed)


def _flat_extractor(image_shape: tuple[int, int, int], width: int) -> nn.Sequential:
    channels, height, breadth = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * breadth, width), nn.ReLU())


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
