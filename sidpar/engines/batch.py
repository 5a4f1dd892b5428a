"""A replica's share of a global batch, as the tensors that enter the cascade."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from sidpar.data.input_rows import Inputs
from sidpar.distributed.device import move
from sidpar.errors import UsageError
from sidpar.rules.base import LocalRule, Rows
from sidpar.schedules.batching import BatchLayout, Share


@dataclass(frozen=True)
class ReplicaBatch:
    """The b rows that this rank's replica computes, on its device."""

    x: Tensor
    """[b, ...]; or those alone that this rank extracts, in the order in which it does."""
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
        x: Inputs,
        y: Tensor,
        share: Share,
        device: torch.device,
        rule: LocalRule,
        *,
        needed: Sequence[int],
        seed: int,
        step: int,
        training: bool,
    ) -> Self:
        """The share of a global batch x [B, ...], y [B] or [B, T], and what the rule makes of it. Raises UsageError if
        the rule makes another number of rows than its `copies` say, or if needed inputs are not here.

        Args:
            needed: the rows whose inputs are looked at here: all of the share, where the rule makes rows.
        """
        first, last, total = share.taken.start, share.taken.stop, len(y)
        rows = Rows(seed, step, share.taken, total)
        here = x[first:last] if isinstance(x, Tensor) else x.take(needed)
        entered, labels = move(here, device), move(y[first:last], device)
        if rule.makes_rows:
            entered, labels = rule.enter(entered, labels, rows, training=training)
        copies = rule.copies if training else 1
        all_here = len(here) == len(share.taken)
        if len(labels) != len(share.taken) * copies or (all_here and len(entered) != len(labels)):
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
        alone = len(layout.shards[rank]) == len(self.x)  # nothing else is here, or all is this rank's
        return self.x if alone else self.x[_shard_index(layout, rank, self.x.device)]

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
