"""Compares the engines of all ranks through the store, before the first message."""

import hashlib
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from sidpar.engines.base import check_batch, check_seams
from sidpar.rules.base import LocalRule
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
    x: Tensor,
    y: Tensor,
    step: int,
    enter: Callable[[], tuple[Tensor, Tensor]] | None = None,
    *,
    training: bool,
    parts: Callable[[], Collection[int]] = tuple,
    accompanied: Callable[[], bool] = lambda: True,
) -> None:
    """Check a batch of a new shape, here and against the other ranks. Raises UsageError on every rank.

    Args:
        enter: returns what enters the cascade, by default x and y; called once these are known to be a batch.
        parts: returns the numbers of rows in which it is given to modules, the same on all ranks.
        accompanied: returns whether batch norms that share their statistics see more than one row of each part, over
            all ranks.
    """
    check_batch(x, y, stage.num_classes)
    labels = hashlib.blake2b(repr(y.tolist()).encode(), digest_size=8).hexdigest()
    batch = {"x": f"{list(x.shape)} {x.dtype}", "y": f"{list(y.shape)}", "labels": labels, "step": step}
    stage.runtime.agree("shapes", batch, stage.runtime.step_timeout)
    entered = enter() if enter else (x, y)
    specs = check_seams(stage, rule, *entered, training=training, parts=parts(), accompanied=accompanied())
    stage.runtime.agree("seams", specs.describe(), stage.runtime.step_timeout)
