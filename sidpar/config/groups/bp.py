"""Backpropagation through the whole cascade."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BPConfig:
    """Backpropagation through the whole cascade, for method=ddp, and for method=bp in one process."""

    checkpointing: bool = False
    """Activation checkpointing: keep only the inputs of each refiner, and compute the rest again in the backward
    pass."""
    deep_supervision: bool = False
    """Train on the sum of all refiners' losses instead of the last refiner's loss."""
