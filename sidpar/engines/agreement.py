"""What every rank's engine must have in common, compared through the store before the first message."""

import hashlib
from typing import Any

from torch import Tensor

from sidpar.engines.base import check_batch
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
            **settings,
        },
    )


def agree_on_batch(stage: Stage, rule: LocalRule, x: Tensor, y: Tensor, step: int) -> None:
    """Check a batch of a new shape, here and against the other ranks. Raises UsageError on every rank."""
    specs = stage.check(x)
    rule.check_states(specs)
    check_batch(x, y, specs, stage.num_classes)
    labels = hashlib.blake2b(repr(y.tolist()).encode(), digest_size=8).hexdigest()
    batch = {"x": f"{list(x.shape)} {x.dtype}", "y": f"{list(y.shape)}", "labels": labels, "step": step}
    stage.runtime.agree("shapes", batch | specs.describe(), stage.runtime.step_timeout)
