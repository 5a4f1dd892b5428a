"""The networks that ship with sidpar, by name. Initial weights depend on (seed, part) alone, never on ranks."""

from collections.abc import Callable

from torch import nn

from sidpar.cascade import Cascade
from sidpar.models.refiner import ConcatRefiner
from sidpar.models.simple_cnn import simple_cnn_extractor
from sidpar.seeding import seeded


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
    channels, height, breadth = image_shape
    return assemble(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(channels * height * breadth, width), nn.ReLU()),
        lambda: ConcatRefiner(width, [width] * depth, num_classes),
        num_classes,
        num_refiners,
        seed,
    )


def assemble(
    extractor: Callable[[], nn.Module],
    refiner: Callable[[], nn.Module],
    num_classes: int,
    num_refiners: int,
    seed: int,
) -> Cascade:
    """A cascade whose every part is built under a seed of its own."""
    with seeded(seed, "extractor"):
        built = extractor()
    refiners = []
    for i in range(num_refiners):
        with seeded(seed, f"refiners.{i}"):
            refiners.append(refiner())
    return Cascade(built, refiners, num_classes)
