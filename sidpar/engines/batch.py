"""A replica's share of a global batch, as the tensors that enter the cascade."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from sidpar.distributed.device import move
from sidpar.errors import UsageError
from sidpar.rules.base import LocalRule, Rows
from sidpar.schedules.batching import BatchLayout, Share


@dataclass(frozen=True)
class ReplicaBatch:
    """The b rows that this rank's replica computes, on its device."""

    x: Tensor
    """[b, ...]"""
    y: Tensor
    """[b] or [b, T]"""
    rows: Rows
    """Which rows these are, for the rule's random numbers."""
    copies: int
    """How many rows the rule makes of each row."""
    counted: int
    """How many of the rows count in the loss: all, or none."""
    labels: int
    """The number of labels in the global batch, over which the loss is a mean."""
    batch_size: int
    """The size B of the global batch."""

    @classmethod
    def take(
        cls,
        x: Tensor,
        y: Tensor,
        share: Share,
        device: torch.device,
        rule: LocalRule,
        *,
        seed: int,
        step: int,
        training: bool,
    ) -> Self:
        """The share of a global batch x [B, ...], y [B] or [B, T], and what the rule makes of it. Raises UsageError if
        the rule makes another number of rows than its `copies` say."""
        first, last, total = share.taken.start, share.taken.stop, len(y)
        rows = Rows(seed, step, share.taken, total)
        own = move(x[first:last], device), move(y[first:last], device)
        entered, labels = rule.enter(*own, rows, training=training)
        copies = rule.copies if training else 1
        if not len(entered) == len(labels) == len(share.taken) * copies:
            raise UsageError(
                f"objective.rule={rule.name} makes {len(entered)} inputs and {len(labels)} labels of "
                f"{len(share.taken)} rows, but its `copies` is {copies}: set `copies` to the number that `enter` makes"
            )
        rows = Rows(seed, step, range(first * copies, last * copies), total * copies)
        return cls(entered, labels, rows, copies, len(share.counted) * copies, y.numel(), total)

    def part(self, rows: slice) -> Rows:
        """The positions of some of these rows in the global batch."""
        return replace(self.rows, numbers=self.rows.numbers[rows])

    def shard(self, layout: BatchLayout, rank: int) -> Tensor:
        """The inputs that one rank of the cascade extracts, in the order of `layout.shards`."""
        whole = len(layout.shards[rank]) == len(self.x)
        return self.x if whole else self.x[_shard_index(layout, rank, self.x.device)]

    @property
    def weight(self) -> float:
        """The weight of each label: with it, sums over microbatches and replicas give the mean over the global
        batch."""
        return 1 / self.labels if self.counted else 0.0

    @property
    def samples(self) -> int:
        """Labels of the global batch that enter, copies included: what is measured is a mean over them."""
        return self.labels * self.copies


@lru_cache(maxsize=64)
def _shard_index(layout: BatchLayout, rank: int, device: torch.device) -> Tensor:
    return torch.tensor(layout.shards[rank], device=device)
