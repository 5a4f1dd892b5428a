"""Compares the engines of all ranks through the store, before the first message."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor

from sidpar.cascade.cascade import Sample
from sidpar.data.input_rows import Inputs
from sidpar.engines.base import check_batch, check_seams
from sidpar.errors import UsageError
from sidpar.rules.base import LocalRule
from sidpar.stages.rows_on_ranks import RowsOnRanks
from sidpar.stages.stage import Stage


def agree_on_engine(stage: Stage, rule: LocalRule, **settings: Any) -> None:
    """Raises UsageError on every rank if the ranks' networks, placements or settings differ."""
    stage.runtime.agree(
        "engine",
        {
            "objective": str(rule),
            "placement": str(stage.placement),
            "compute": str(stage.compute),
            "initial weights": stage.skeleton.fingerprint,
            "sync_batchnorm": sorted(stage.shared_norms),
            **settings,
        },
    )


def agree_on_batch(
    stage: Stage,
    rule: LocalRule,
    x: Inputs,
    y: Tensor,
    step: int,
    rows: Sequence[Sequence[int]],
    enter: Callable[[], tuple[Tensor, Tensor]] | None = None,
    *,
    training: bool,
    parts: Callable[[], Collection[int]] = tuple,
    accompanied: Callable[[], bool] = lambda: True,
    share: range | None = None,
) -> Sample:
    """Check a batch of a new shape, here and against the other ranks. Raises UsageError on every rank.

    Args:
        rows: those whose inputs each rank of the cascade needs, ascending.
        enter: returns what enters the cascade, by default x and y; called once these are known to be a batch.
        parts: returns the numbers of rows in which it is given to modules, the same on all ranks.
        accompanied: returns whether batch norms that share their statistics see more than one row of each part, over
            all ranks.
        share: the rows of the batch that enter, by default all.

    Returns what enters, of which any few rows may be looked at, by all ranks alike.
    """
    check_batch(x, y, stage.num_classes)
    labels = hashlib.blake2b(repr(y.tolist()).encode(), digest_size=8).hexdigest()
    batch = {"x": f"{list(x.shape)} {x.dtype}", "y": f"{list(y.shape)}", "labels": labels, "step": step}
    stage.runtime.agree("shapes", batch, stage.runtime.step_timeout)
    share, own = share or range(len(y)), rows[stage.runtime.cascade_rank]
    here = (None, False) if isinstance(x, Tensor) else (x.lacks(own), len(own) < len(share))
    everyone = stage.runtime.exchange("inputs", here, stage.runtime.step_timeout)
    for lacking, _ in everyone:
        if lacking is not None:
            raise UsageError(lacking)
    entered, entered_y = enter() if enter else (x if isinstance(x, Tensor) else x.take(own), y)
    sample: Sample = entered
    if any(in_part for _, in_part in everyone):
        sample = RowsOnRanks(stage, entered, len(entered_y), [[row - share.start for row in each] for each in rows])
    specs = check_seams(stage, rule, sample, entered_y, training=training, parts=parts(), accompanied=accompanied())
    stage.runtime.agree("seams", specs.describe(), stage.runtime.step_timeout)
    return sample
