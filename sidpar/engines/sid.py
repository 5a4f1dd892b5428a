"""SID on ranks: walks the schedule's list of actions for each batch."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cached_property

from torch import Tensor, nn

from sidpar.actions import Action
from sidpar.batching import BatchLayout
from sidpar.choices import RefinerExecution, SynchronousName
from sidpar.clock import Clock, span
from sidpar.device import preserved_generator
from sidpar.engines import StepResult, Synchronous, chosen, clip_each
from sidpar.engines.agreement import agree_on_batch, agree_on_engine
from sidpar.engines.execution import Execution, Resources
from sidpar.engines.stacks import Stacks
from sidpar.engines.versions import Version
from sidpar.errors import UsageError
from sidpar.objective import Objective
from sidpar.phases import PHASE
from sidpar.placement import Placement
from sidpar.schedule import SCHEDULES, RankView, inference
from sidpar.stage import Stage
from sidpar.traffic import Traffic
from sidpar.transport import Transport


class SIDEngine(Synchronous):
    """Trains the refiners of this rank, and this rank's part of the extractor.

    Args:
        schedule: `fused` or `two_phase` (DESIGN section 5); both give the gradients of `LocalEngine`. The third one is
            `StreamingEngine`'s.
        microbatches: M; a batch with fewer rows is cut into as many microbatches as it has rows.
        refiner_execution: `loop`, one refiner after the other, or `stacked`: all of this rank's as one batched
            computation (`stacked.py`). Pays where refiners are many and small, and one rank has several.
        seed: of the random masks; the same on all ranks.

    Batch norm in refiners, or in a replicated or root extractor, sees one microbatch at a time, so with M > 1 its
    statistics differ from the local engine's; so do the masks of dropout.
    """

    def __init__(
        self,
        stage: Stage,
        objective: Objective,
        *,
        schedule: SynchronousName = "fused",
        microbatches: int = 1,
        refiner_execution: RefinerExecution = "loop",
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
        self._view = RankView(stage.placement, self._runtime.rank, microbatches, update, refiner_execution)
        self._transport = Transport(self._runtime) if self._runtime.world_size > 1 else None
        self.traffic = Traffic() if self._transport is None else self._transport.traffic
        alphas = objective.alphas(stage.placement.num_refiners)
        stacks = Stacks(stage, objective) if refiner_execution == "stacked" else None
        self._resources = Resources(stage, objective, alphas, self._view, self._transport, stacks, seed)
        settings = {"schedule": schedule, "microbatches": microbatches, "refiner_execution": refiner_execution}
        agree_on_engine(stage, objective, **settings, seed=seed)
        self._trainable = stage.trainable_flags()
        self._layouts: dict[tuple[object, ...], BatchLayout] = {}
        self._actions: dict[tuple[str, int], list[Action]] = {}

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """x [B, ...], labels [B] or [B, T], the same on every rank: gradients into `stage.parameters()`."""
        self._check_trainable()
        self.stage.zero_grad()
        with preserved_generator(self._runtime.device):
            result = self._execute(SCHEDULES[self._schedule], x, y, self._microbatches, self._open_extractor)
        self.steps += 1
        return result

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        """x [B, ...], labels [B] or [B, T], the same on every rank: beliefs in inference mode."""
        with self.stage.inference_mode():
            return self._execute(inference, x, y, 1, lambda _: Version(self._extractor, None))

    def _execute(
        self,
        schedule: Callable[[RankView], Iterator[Action]],
        x: Tensor,
        y: Tensor,
        microbatches: int,
        open_version: Callable[[int], Version],
    ) -> StepResult:
        layout = self._admit(x, y, microbatches)
        x, y = x.to(self._runtime.device), y.to(self._runtime.device)
        execution = Execution(self._resources, x, y, layout, self.steps, open_version)
        for action in self._list(schedule, len(layout.microbatches)):
            self._do(execution, action)
        execution.check_finished()
        return execution.result()

    def _do(self, execution: Execution, action: Action) -> None:
        with self._runtime.during(action, self.steps), span(self.clock, PHASE[action.do], action):
            execution.do(action)

    def clip(self, limit: float, parts: Collection[str]) -> None:
        """Scale down the gradients of each of these parts to norm `limit` on its own."""
        clip_each(chosen(self.stage, parts), limit)

    @property
    def _extractor(self) -> nn.Module:
        assert self.stage.extractor is not None, "only a rank that holds the extractor asks for it"
        return self.stage.extractor

    @cached_property
    def _present(self) -> Version:
        """The extractor itself, with buckets where its gradients are summed over ranks."""
        return Version(self._extractor, self._transport if self._view.reduces_parameters else None)

    def _open_extractor(self, step: int) -> Version:
        self._present.open()
        return self._present

    def lists(self) -> list[list[Action]]:
        """All ranks' actions of a step with M microbatches."""
        return [list(SCHEDULES[self._schedule](view)) for view in self._views]

    @property
    def _views(self) -> list[RankView]:
        """What the schedules of all ranks are functions of."""
        return [replace(self._view, rank=rank) for rank in range(self._view.placement.num_ranks)]

    def _list(self, schedule: Callable[[RankView], Iterator[Action]], microbatches: int) -> list[Action]:
        key = (schedule.__name__, microbatches)
        if key not in self._actions:
            self._actions[key] = list(schedule(replace(self._view, microbatches=microbatches)))
        return self._actions[key]

    def _admit(self, x: Tensor, y: Tensor, microbatches: int) -> BatchLayout:
        """Check a batch of a new shape, here and against the other ranks, before anything of it is sent."""
        key = (*self._key(x, y), microbatches)
        if key not in self._layouts:
            agree_on_batch(self.stage, x, y, self.steps)
            if not self._layouts:
                self._runtime.connect()
            self._layouts[key] = BatchLayout(x.shape[0], microbatches, self._runtime.world_size)
        return self._layouts[key]

    def _key(self, x: Tensor, y: Tensor) -> tuple[object, ...]:
        """What batches that are alike have in common."""
        return tuple(x.shape), x.dtype, tuple(y.shape)

    def _check_trainable(self) -> None:
        if self.stage.trainable_flags() != self._trainable:
            raise UsageError("requires_grad of some parameters has changed since this engine was made: make a new one")
