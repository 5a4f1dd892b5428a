"""Builds cascades from a function for each part. Initial weights depend on (seed, part) alone, never on ranks."""

from collections.abc import Callable

from torch import nn

from sidpar.cascade.cascade import Cascade
from sidpar.seeding import seeded


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
