"""Local learning on ranks: executes the schedule's list of actions for each batch."""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, cached_property

import torch
from torch import Tensor, nn

from sidpar.config.groups.choices import RefinerExecution, SynchronousName
from sidpar.config.groups.objective import Objective
from sidpar.data.input_rows import Inputs
from sidpar.distributed.device import synchronize
from sidpar.engines.agreement import agree_on_batch, agree_on_engine
from sidpar.engines.base import Synchronous, check_extractor_learns, check_kept, chosen, clip_each
from sidpar.engines.batch import ReplicaBatch
from sidpar.engines.execution import Execution
from sidpar.engines.resources import Resources, send_statistics_first
from sidpar.engines.result import StepResult
from sidpar.errors import UsageError, reason
from sidpar.messages.gradients import GradientBuckets
from sidpar.messages.rehearsal import send_first
from sidpar.messages.transport import Transport
from sidpar.messages.wire import Pending
from sidpar.profiler.clock import Clock, span
from sidpar.profiler.traffic import Traffic
from sidpar.rules import rule_of
from sidpar.rules.base import LocalRule
from sidpar.schedules.actions import Action
from sidpar.schedules.batching import BatchLayout, Share
from sidpar.schedules.phases import PHASE
from sidpar.schedules.placement import Placement
from sidpar.schedules.rank_view import RankView, Reads
from sidpar.schedules.receives import when_needed
from sidpar.schedules.synchronous import SCHEDULES, extracts_ahead, inference
from sidpar.stages.rehearsal import unnoticed
from sidpar.stages.stacks import Stacks, agree_on_stacks
from sidpar.stages.stage import Stage
from sidpar.stages.versions import Version, trained


class ParallelEngine(Synchronous):
    """Trains the refiners of this rank, and this rank's part of the extractor.

    With R replicas of the cascade, each computes 1/R of every batch, and gradients are summed over them.

    Args:
        stage: made with `extractor` and `counts`.
        objective: the settings of a rule, or a rule, by which refiners learn.
        schedule: `fused` or `two_phase` (`schedules/synchronous.py`); both give the gradients of `LocalEngine`. The
            third schedule, `streaming`, is `StreamingEngine`.
        microbatches: M, of each replica's share; a share with fewer rows is cut into as many microbatches as it has
            rows.
        refiner_execution: `loop`, one refiner after the other, or `stacked`: all of this rank's as one batched
            computation (`cascade/stacked.py`). Pays where refiners are many and small, and one rank has several.
        seed: of random numbers in modules, such as dropout masks, and of the rule; the same on all ranks.

    Batch norm in refiners, or in a replicated or root extractor, sees one microbatch of one replica at a time, so with
    M > 1 or R > 1 its statistics differ from the local engine's; so do dropout masks. The statistics that are
    saved and evaluated are those of the first replica. With `Stage(..., sync_batchnorm=True)` it sees that microbatch
    of all replicas, and in a sharded extractor the whole batch.

    Raises:
        UsageError: the settings do not fit each other or the stage, or ranks have different ones.
    """

    def __init__(
        self,
        stage: Stage,
        objective: Objective | LocalRule,
        *,
        schedule: SynchronousName = "fused",
        microbatches: int = 1,
        refiner_execution: RefinerExecution = "loop",
        seed: int = 0,
    ) -> None:
        if schedule not in SCHEDULES:
            raise UsageError(f"schedule {schedule!r} is unknown; choose one of {list(SCHEDULES)}")
        if not isinstance(stage.placement, Placement):
            raise UsageError("ParallelEngine needs a stage made with `extractor` and `counts`, not with `placement`")
        if microbatches < 1:
            raise UsageError(f"microbatches must be at least 1, got {microbatches}")
        self.stage = stage
        self.rule = rule_of(objective)
        self.rule.check(stage.placement.num_refiners)
        self.rule.check_parts(microbatches=microbatches, replicas=stage.runtime.num_replicas)
        self.steps = 0
        self.clock: Clock | None = None
        self._schedule = schedule
        self._microbatches = microbatches
        self._runtime = stage.runtime
        # An extractor without parameters has nothing to reduce or to run backward through.
        trains_extractor = self.rule.trains_extractor and stage.skeleton.extractor_is_trainable
        if not trains_extractor:
            stage.freeze_extractor()
        runtime = self._runtime
        self._view = RankView(
            stage.placement,
            runtime.cascade_rank,
            microbatches,
            trains_extractor,
            runtime.num_replicas,
            refiner_execution,
            self.rule.passes_states,
        )
        self._transport = Transport(runtime) if runtime.world_size > 1 else None
        self.traffic = Traffic() if self._transport is None else self._transport.traffic
        self._refiner_buckets = self._make_refiner_buckets()
        stacks = Stacks(stage, self.rule) if refiner_execution == "stacked" else None
        self._resources = Resources(stage, self.rule, self._transport, self._refiner_buckets, stacks, seed)
        self._seed = seed
        settings = {"schedule": schedule, "microbatches": microbatches, "refiner_execution": refiner_execution}
        agree_on_engine(stage, self.rule, **settings, seed=seed)
        self._trainable = stage.trainable_flags()
        self._layouts: dict[tuple[object, ...], BatchLayout] = {}
        self._readers: dict[tuple[object, ...], Reads | None] = {}
        self._rows: dict[tuple[int, bool], list[Sequence[int]]] = {}
        self._actions: dict[tuple[str, RankView], list[Action]] = {}

    def rows_needed(self, batch_size: int, *, training: bool) -> Sequence[int]:
        """The rows of a batch whose inputs this rank needs, in ascending order: those that it extracts; all of its
        replica's share, if the rule changes what enters.

        Args:
            batch_size: the size B of the global batch.
            training: for `step` and `train`; otherwise for `evaluate`.
        """
        return self._rows_of_ranks(batch_size, training=training)[self._runtime.cascade_rank]

    def step(self, x: Inputs, y: Tensor) -> StepResult:
        """Compute the gradients of one batch into `stage.parameters()`, in place of those that were there.

        Args:
            x: inputs [B, ...], the same on every rank; or those of `rows_needed`, as `InputRows`.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.

        Raises:
            UsageError: the batch does not fit the cascade, or ranks have different batches.
        """
        self._check_trainable()
        layout = self._admit(x, y, self._microbatches, training=True)
        self.stage.zero_grad()
        self._open_refiners()
        with self.stage.preserved_generators():
            result = self._execute(SCHEDULES[self._schedule], x, y, layout, self._open_extractor)
        self.steps += 1
        return result

    def evaluate(self, x: Inputs, y: Tensor) -> StepResult:
        """The beliefs about one batch, in inference mode and without gradients.

        Args:
            x: inputs [B, ...], the same on every rank; or those of `rows_needed`, as `InputRows`.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.

        Raises:
            UsageError: the batch does not fit the cascade, or ranks have different batches.
        """
        layout = self._admit(x, y, 1, training=False)
        with self.stage.inference_mode():
            self._share_statistics()
            return self._execute(inference, x, y, layout, _as_it_is, training=False)

    def _execute(
        self,
        schedule: Callable[[RankView], Iterator[Action]],
        x: Inputs,
        y: Tensor,
        layout: BatchLayout,
        open_version: Callable[[int], Version],
        *,
        training: bool = True,
    ) -> StepResult:
        share = self._take_share(x, y, self.steps, training=training)
        view = self._view_of(share.x, layout)
        execution = Execution(self._resources, view, share, layout, self.steps, open_version, training=training)
        for action in self._list(schedule, view):
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
        return Version(trained(self._extractor), None, self._sum_extractor())

    def _sum_extractor(self) -> Callable[[Tensor], Pending] | None:
        """The message that sums the extractor's gradients over the ranks that hold it; None where no other does."""
        if not self._view.reduces_parameters:
            return None
        assert self._transport is not None
        root = self._view.placement.extractor == "root"
        return self._transport.sum_root_gradients if root else self._transport.sum_extractor_gradients

    def _open_extractor(self, step: int) -> Version:
        self._present.open()
        return self._present

    def _make_refiner_buckets(self) -> GradientBuckets | None:
        if not self._view.reduces_refiners:
            return None
        assert self._transport is not None
        # Backwards complete the refiners in cascade order, and buckets are filled from the last parameter on.
        refiners = [self.stage.refiners[str(i)] for i in reversed(self._view.refiners)]
        parameters = [parameter for refiner in refiners for parameter in trained(refiner)]
        return GradientBuckets(parameters, self._transport.sum_refiner_gradients)

    def _open_refiners(self) -> None:
        """Remove all gradients at the start of a batch."""
        if self._refiner_buckets is not None:
            self._refiner_buckets.reset()
            self._refiner_buckets.attach()

    def _share_statistics(self) -> None:
        """Batch norm has seen another part of the data in each replica: take the statistics that are saved."""
        if self._runtime.num_replicas > 1:
            assert self._transport is not None
            with self._runtime.during("share the first replica's running statistics", self.steps):
                self._transport.share_buffers(tuple(self.stage.unshared_buffers()))

    def lists(self) -> list[list[Action]]:
        """The actions of all ranks of a cascade, for a step with M microbatches."""
        return [self._in_order(SCHEDULES[self._schedule], view) for view in self._views]

    @property
    def _views(self) -> list[RankView]:
        """The inputs of the schedules of all ranks; before the first batch, of features that go everywhere."""
        reads = next(iter(self._readers.values()), None)
        return [replace(self._view, rank=rank, reads=reads) for rank in range(self._view.placement.num_ranks)]

    def _list(self, schedule: Callable[[RankView], Iterator[Action]], view: RankView) -> list[Action]:
        key = (schedule.__name__, view)
        if key not in self._actions:
            self._actions[key] = self._in_order(schedule, view)
        return self._actions[key]

    def _view_of(self, x: Tensor, layout: BatchLayout) -> RankView:
        """Of a batch of which x enters."""
        return replace(self._view, microbatches=len(layout.microbatches), reads=self._reads(x))

    def _reads(self, x: Tensor) -> Reads | None:
        """Which refiners read which features, as the ranks have agreed; None: each may read all."""
        return self._readers.get((tuple(x.shape[1:]), x.dtype))

    def _agree_on_reads(self, x: Tensor) -> None:
        """Find which refiners read which features, for inputs like x. All ranks call it: what one of them has found,
        by a hook of its own for one, holds for all. A rule may read all features; stacked refiners run in a transform
        that features must be passed through, and compiled ones cannot be watched."""
        key = (tuple(x.shape[1:]), x.dtype)
        if key in self._readers:
            return
        stacked = self._view.refiner_execution == "stacked"
        whole = self.rule.loss_reads_features or stacked or self.stage.compute.compile
        mine = None if whole else self.stage.skeleton.reads(x)
        everyone = self._runtime.exchange("readers", None if mine is None else [sorted(refiners) for refiners in mine])
        each = None if None in everyone else zip(*everyone, strict=True)
        self._readers[key] = None if each is None else tuple(frozenset().union(*found) for found in each)

    def _in_order(self, schedule: Callable[[RankView], Iterable[Action]], view: RankView) -> list[Action]:
        """A schedule's actions, in the order for this backend."""
        if self._runtime.posts_receives_ahead:
            return list(schedule(view))
        waits = "extractor" in self.stage.shared_norms and view.placement.extractor == "sharded"
        sender = schedule(replace(view, rank=view.previous)) if waits and view.previous is not None else ()
        return list(when_needed(schedule(view), sender))

    def _admit(self, x: Inputs, y: Tensor, microbatches: int, *, training: bool) -> BatchLayout:
        """Check a batch of a new shape, here and against the other ranks, before anything of it is sent."""
        key = (*self._key(x, y), microbatches, training)
        if key not in self._layouts:
            share = cache(lambda: self._take_share(x, y, self.steps, training=training))
            cut, ranks = self._share_of(len(x)), self._runtime.cascade_size
            layout = cache(lambda: cut.layout(microbatches, ranks, share().copies))
            agree_on_batch(
                self.stage,
                self.rule,
                x,
                y,
                self.steps,
                self._rows_of_ranks(len(x), training=training),
                lambda: (share().x, share().y),
                training=training,
                parts=lambda: cut.sizes_anywhere(microbatches, share().copies),
                accompanied=lambda: len(x) * share().copies > 1,
                share=cut.taken,
            )
            self._agree_on_reads(share().x)
            if training:
                check_extractor_learns(self.stage, self.rule, share().x, self._reads(share().x))
            if not self._layouts and self._resources.stacks is not None:
                agree_on_stacks(self.stage, share().x)
            if training:
                self._check_kept(microbatches)
            rehearses = self._runtime.loads_lazily and self._transport is not None
            if rehearses:
                self._rehearse(x, y, layout(), training=training)
            if not self._layouts:
                self._runtime.connect()
            if rehearses:
                self._send_first(share().x, layout(), training=training)
            self._layouts[key] = layout()
        return self._layouts[key]

    def _rehearse(self, x: Inputs, y: Tensor, layout: BatchLayout, *, training: bool) -> None:
        """Go through a batch of a new layout alone, so that whatever is used for the first time is so before other
        ranks wait (`simulation/first_use.py`). Nothing stays, but gradients, which the step to come replaces."""
        assert self._transport is not None
        clock, self.clock = self.clock, None
        mode = nullcontext() if training else self.stage.inference_mode()
        schedule, open_version = (SCHEDULES[self._schedule], self._open_alone) if training else (inference, _as_it_is)
        try:
            with mode, unnoticed(self.stage, self._transport, self._buckets()):
                if training:
                    self._open_refiners()
                self._execute(schedule, x, y, layout, open_version, training=training).measures()
        except Exception as error:
            # A module may refuse what other ranks would have sent: here, zeros. Then its first uses are in the step.
            warnings.warn(f"the dry run of the first batch has failed and is skipped: {reason(error)}", stacklevel=2)
        finally:
            self.clock = clock
        synchronize(self._runtime.device)
        self._runtime.exchange("rehearsal", "done")  # patiently, unlike a message: another rank may be compiling

    def _send_first(self, x: Tensor, layout: BatchLayout, *, training: bool) -> None:
        """Each message of a batch of a new layout once, and those of what is measured."""
        assert self._transport is not None
        with self._runtime.during("first message of each kind and size"):
            buckets = self._buckets() if training else []
            specs = self.stage.skeleton.specs(x)
            send_first(self._transport, self._view_of(x, layout), layout, specs, buckets, training=training)
            send_statistics_first(self.stage, self._transport)
            for dtype in (torch.float64, torch.int64):
                self._runtime.sum("nothing", torch.zeros(1, dtype=dtype, device=self._runtime.device))
            synchronize(self._runtime.device)

    def _buckets(self) -> list[GradientBuckets]:
        """The buckets of all gradients that this rank sums with others."""
        extractor = self._extractor_buckets() if self._view.reduces_parameters else None
        return [buckets for buckets in (self._refiner_buckets, extractor) if buckets is not None]

    def _extractor_buckets(self) -> GradientBuckets | None:
        return self._present.buckets

    def _open_alone(self, step: int) -> Version:
        """The extractor for a rehearsal."""
        return self._open_extractor(step)

    def _check_kept(self, microbatches: int) -> None:
        """Raises UsageError if this engine would do something else with what modules keep than one process."""
        views = (replace(view, microbatches=microbatches) for view in self._views)
        ahead = any(extracts_ahead(SCHEDULES[self._schedule](view)) for view in views)
        overlapping = ["extractor"] if ahead else []
        check_kept(self.stage, overlapping, microbatches=microbatches, replicas=self._runtime.num_replicas)

    def _share_of(self, batch_size: int) -> Share:
        return Share(batch_size, self._runtime.num_replicas, self._runtime.replica)

    def _rows_of_ranks(self, batch_size: int, *, training: bool) -> list[Sequence[int]]:
        """The rows whose inputs each rank of this replica's cascade needs."""
        key = (batch_size, training)
        if key not in self._rows:
            extractor = "replicated" if self.rule.makes_rows else self._view.placement.extractor
            microbatches, ranks = self._microbatches if training else 1, self._runtime.cascade_size
            share = self._share_of(batch_size)
            extracted = share.extracted(extractor, microbatches, ranks)
            # Without a shard, a rank goes through a row that does not count, where others wait for its statistics.
            if extractor == "sharded" and "extractor" in self.stage.shared_norms:
                extracted = [rows or share.taken[:1] for rows in extracted]
            self._rows[key] = extracted
        return self._rows[key]

    def _take_share(self, x: Inputs, y: Tensor, step: int, *, training: bool) -> ReplicaBatch:
        share, device = self._share_of(len(x)), self._runtime.device
        needed = self.rows_needed(len(x), training=training)
        return ReplicaBatch.take(
            x, y, share, device, self.rule, needed=needed, seed=self._seed, step=step, training=training
        )

    def _key(self, x: Inputs, y: Tensor) -> tuple[object, ...]:
        """A key that is the same for batches of the same shape."""
        return tuple(x.shape), x.dtype, tuple(y.shape)

    def _check_trainable(self) -> None:
        if self.stage.trainable_flags() != self._trainable:
            raise UsageError("requires_grad of some parameters has changed since this engine was made: make a new one")


def _as_it_is(step: int) -> Version:
    return Version.as_it_is()
