"""Backpropagation through the whole cascade."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BPConfig:
    """Backpropagation through the whole cascade (method=bp in one process, method=ddp)."""

    checkpointing: bool = False
    """Keep only what enters each refiner, and compute the rest again in the backward."""
    deep_supervision: bool = False
    """Train by the sum of the losses of all refiners."""
