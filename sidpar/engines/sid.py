"""SID on ranks: walks the schedule's list of actions for each batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from sidpar.actions import Action
from sidpar.batching import BatchLayout
from sidpar.buckets import GradientBuckets
from sidpar.choices import ScheduleName
from sidpar.clock import Clock, span
from sidpar.device import preserved_generator
from sidpar.engines import StepResult, clip_parts
from sidpar.engines.agreement import agree_on_batch, agree_on_engine
from sidpar.engines.execution import Execution, Resources
from sidpar.errors import UsageError
from sidpar.objective import Objective
from sidpar.phases import PHASE
from sidpar.placement import Placement
from sidpar.schedule import SCHEDULES, RankView, all_ranks, inference
from sidpar.stage import Stage
from sidpar.traffic import Traffic
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
            raise UsageError(f"schedule {schedule!r} is unknown; choose one of {list(SCHEDULES)}")
        if not isinstance(stage.placement, Placement):
            raise UsageError("SIDEngine needs a stage placed by `extractor` and `counts`, not one of backpropagation")
        if microbatches < 1:
            raise UsageError(f"microbatches must be at least 1, got {microbatches}")
        self.stage = stage
        self.objective = objective
        self.steps = 0
        self.clock: Clock | None = None
        self._schedule = schedule
        self._microbatches = microbatches
        self._runtime = stage.runtime
        # An extractor without parameters has nothing to reduce or to run backward through.
        update = objective.extractor_update if stage.skeleton.extractor_is_trainable else "frozen"
        if update == "frozen":
            stage.freeze_extractor()
        self._view = RankView(stage.placement, self._runtime.rank, microbatches, update)
        transport = Transport(self._runtime) if self._runtime.world_size > 1 else None
        self.traffic = Traffic() if transport is None else transport.traffic
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
        agree_on_engine(stage, objective, schedule=schedule, microbatches=microbatches, seed=seed)
        self._trainable = stage.trainable_flags()
        self._layouts: dict[tuple[object, ...], BatchLayout] = {}
        self._actions: dict[tuple[str, int], list[Action]] = {}

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """x [B, ...], labels [B] or [B, T], the same on every rank: gradients into `stage.parameters()`."""
        if self.stage.trainable_flags() != self._trainable:
            raise UsageError("requires_grad of some parameters has changed since this engine was made: make a new one")
        self.stage.zero_grad()
        if self._resources.buckets is not None:
            self._resources.buckets.reset()
        with preserved_generator(self._runtime.device):
            result = self._execute(SCHEDULES[self._schedule], x, y, self._microbatches)
        self.steps += 1
        return result

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        """x [B, ...], labels [B] or [B, T], the same on every rank: beliefs in inference mode."""
        with self.stage.inference_mode():
            return self._execute(inference, x, y, 1)

    def _execute(
        self, schedule: Callable[[RankView], Iterator[Action]], x: Tensor, y: Tensor, microbatches: int
    ) -> StepResult:
        layout = self._admit(x, y, microbatches)
        x, y = x.to(self._runtime.device), y.to(self._runtime.device)
        execution = Execution(self._resources, x, y, layout, self.steps)
        for action in self._list(schedule, len(layout.microbatches)):
            with self._runtime.during(action, self.steps), span(self.clock, PHASE[action.do], action):
                execution.do(action)
        return execution.result()

    def clip(self, limit: float) -> None:
        """Scale down each part's gradients to norm `limit` on its own: its loss is its own, so is its norm."""
        clip_parts(self.stage.parts().values(), limit)

    def lists(self) -> list[list[Action]]:
        """All ranks' actions of a step with M microbatches."""
        schedule, view = SCHEDULES[self._schedule], self._view
        return all_ranks(schedule, view.placement, self._microbatches, view.extractor_update)

    def _list(self, schedule: Callable[[RankView], Iterator[Action]], microbatches: int) -> list[Action]:
        key = (schedule.__name__, microbatches)
        if key not in self._actions:
            self._actions[key] = list(schedule(replace(self._view, microbatches=microbatches)))
        return self._actions[key]

    def _admit(self, x: Tensor, y: Tensor, microbatches: int) -> BatchLayout:
        """Check a batch of a new shape, here and against the other ranks, before anything of it is sent."""
        key = (tuple(x.shape), x.dtype, tuple(y.shape), microbatches)
        if key not in self._layouts:
            agree_on_batch(self.stage, x, y, self.steps)
            if not self._layouts:
                self._runtime.connect()
            self._layouts[key] = BatchLayout(x.shape[0], microbatches, self._runtime.world_size)
        return self._layouts[key]
