"""SID on ranks: walks the schedule's list of actions for each batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sidpar.batching import BatchLayout
from sidpar.buckets import GradientBuckets
from sidpar.device import preserved_generator
from sidpar.engines import StepResult
from sidpar.engines.execution import Execution, Resources
from sidpar.objective import Objective
from sidpar.schedule import SCHEDULES, Action, RankView, ScheduleName, inference
from sidpar.stage import Stage
from sidpar.transport import Transport


class SIDEngine:
    """Trains the refiners of this rank, and this rank's part of the extractor.

    Args:
        schedule: `fused` or `two_phase` (DESIGN section 5); both give the gradients of `LocalEngine`.
        microbatches: M; a batch with fewer rows is cut into as many microbatches as it has rows.
        seed: of the random masks; the same on all ranks.

    Batch norm in refiners, or in a replicated or root extractor, sees one microbatch at a time, so with M > 1 its
    statistics differ from the local engine's; so do the masks of dropout.
    """

    def __init__(
        self,
        stage: Stage,
        objective: Objective,
        *,
        schedule: ScheduleName = "fused",
        microbatches: int = 1,
        seed: int = 0,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r} is unknown; choose one of {list(SCHEDULES)}")
        if microbatches < 1:
            raise ValueError(f"microbatches must be at least 1, got {microbatches}")
        self.stage = stage
        self.steps = 0
        self._schedule = schedule
        self._microbatches = microbatches
        self._runtime = stage.runtime
        # An extractor without parameters has nothing to reduce or to run backward through.
        update = objective.extractor_update if stage.skeleton.extractor_is_trainable else "frozen"
        self._view = RankView(stage.placement, self._runtime.rank, microbatches, update)
        transport = Transport(self._runtime) if self._runtime.world_size > 1 else None
        buckets = None
        if transport is not None and stage.extractor is not None and self._view.reduces_parameters:
            buckets = GradientBuckets([p for p in stage.extractor.parameters() if p.requires_grad], transport)
        self._resources = Resources(
            stage,
            objective,
            objective.alphas(stage.placement.num_refiners),
            self._view,
            transport,
            buckets,
            seed,
        )
        self._layouts: dict[tuple[object, ...], BatchLayout] = {}
        self._actions: dict[tuple[str, int], list[Action]] = {}

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        self.stage.zero_grad()
        if self._resources.buckets is not None:
            self._resources.buckets.reset()
        with preserved_generator(self._runtime.device):
            result = self._execute(SCHEDULES[self._schedule], x, y, self._microbatches)
        self.steps += 1
        return result

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        self.stage.eval()
        result = self._execute(inference, x, y, 1)
        self.stage.train()
        return result

    def _execute(
        self, schedule: Callable[[RankView], Iterator[Action]], x: Tensor, y: Tensor, microbatches: int
    ) -> StepResult:
        layout = self._admit(x, y, microbatches)
        execution = Execution(
            self._resources, x.to(self._runtime.device), y.to(self._runtime.device), layout, self.steps
        )
        for action in self._list(schedule, len(layout.microbatches)):
            try:
                execution.do(action)
            except Exception as error:
                error.add_note(f"rank {self._runtime.rank} failed in step {self.steps}, in the action: {action}")
                raise
        return execution.result()

    def _list(self, schedule: Callable[[RankView], Iterator[Action]], microbatches: int) -> list[Action]:
        key = (schedule.__name__, microbatches)
        if key not in self._actions:
            self._actions[key] = list(schedule(replace(self._view, microbatches=microbatches)))
        return self._actions[key]

    def _admit(self, x: Tensor, y: Tensor, microbatches: int) -> BatchLayout:
        """Check a batch of a new shape, here and against the other ranks, before anything of it is sent."""
        key = (tuple(x.shape), x.dtype, tuple(y.shape), microbatches)
        if key not in self._layouts:
            check_batch(x, y, self.stage.num_classes)
            described = {"x": f"{list(x.shape)} {x.dtype}", "y": f"{list(y.shape)}", "step": self.steps}
            specs = self.stage.skeleton.specs(x).describe()
            self._runtime.agree("shapes", described | specs, self._runtime.step_timeout)
            self._layouts[key] = BatchLayout(x.shape[0], microbatches, self._runtime.world_size)
        return self._layouts[key]


def check_batch(x: Tensor, y: Tensor, num_classes: int) -> None:
    """Refuse a batch that does not fit. Synchronises with the device, so not for every step."""
    if x.shape[0] == 0 or x.shape[0] != y.shape[0]:
        raise ValueError(
            f"a batch needs as many labels as inputs, at least one, got {x.shape[0]} inputs, {y.shape[0]} labels"
        )
    if y.dtype != torch.int64:
        raise ValueError(f"labels must be int64, got {y.dtype}")
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(y.min())}..{int(y.max())}")
