"""A replica's share of a global batch, as tensors."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from sidpar.schedules.batching import BatchLayout, Share


@dataclass(frozen=True)
class ReplicaBatch:
    """The b rows that this rank's replica computes, on its device."""

    x: Tensor
    """[b, ...]"""
    y: Tensor
    """[b] or [b, T]"""
    counted: int
    """How many of the rows count: all, or none."""
    samples: int
    """Labels of the global batch."""
    batch_size: int
    """B."""

    @classmethod
    def take(cls, x: Tensor, y: Tensor, share: Share, device: torch.device) -> Self:
        """The share of a global batch x [B, ...], y [B] or [B, T]."""
        rows = slice(share.taken.start, share.taken.stop)
        return cls(x[rows].to(device), y[rows].to(device), len(share.counted), y.numel(), len(y))

    def shard(self, layout: BatchLayout, rank: int) -> Tensor:
        """The inputs that one rank of the cascade extracts, in the order of `layout.shards`."""
        whole = len(layout.shards[rank]) == len(self.x)
        return self.x if whole else self.x[_shard_index(layout, rank, self.x.device)]

    @property
    def weight(self) -> float:
        """Of each label in the mean over the global batch: sums over microbatches and replicas are that mean."""
        return 1 / self.samples if self.counted else 0.0


@lru_cache(maxsize=64)
def _shard_index(layout: BatchLayout, rank: int, device: torch.device) -> Tensor:
    return torch.tensor(layout.shards[rank], device=device)
