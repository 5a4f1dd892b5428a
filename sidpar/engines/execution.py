"""Executes one batch on one rank: the tensors that are alive, and what each verb of a schedule does with them.

Letters as in the schedule: i refiner, m microbatch. State i is what refiner i receives.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from sidpar.cascade.cascade import TensorTuple, detach, initial_state, is_differentiable, leaves
from sidpar.cascade.reads import Absent, rows_of
from sidpar.cascade.specs import check_alike, specs_of
from sidpar.engines.batch import ReplicaBatch
from sidpar.engines.pending import PendingMessages
from sidpar.engines.resources import Resources
from sidpar.engines.result import StepResult
from sidpar.messages.gradients import GradientBuckets
from sidpar.messages.transport import Transport
from sidpar.schedules.actions import Action, Do, known
from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.rank_view import RankView
from sidpar.seeding import mask_seed
from sidpar.stages.versions import Version


class Execution:
    """Executes a schedule's actions for one batch. Tensors are dropped as soon as their last reader is done.

    Args:
        view: what the schedule is a function of.
        open_version: gives the extractor for this batch, once its features or gradients are first needed.
        update: carries out `UPDATE_…`, for the schedules that say when to update.
        training: whether refiners learn; otherwise the schedule is that of inference.
    """

    def __init__(
        self,
        resources: Resources,
        view: RankView,
        batch: ReplicaBatch,
        layout: BatchLayout,
        step: int,
        open_version: Callable[[int], Version],
        update: Callable[[Do], None] | None = None,
        *,
        training: bool = True,
    ) -> None:
        self._resources = resources
        self._stage = resources.stage
        self.view = view
        self._rank = view.rank
        self._device = resources.stage.runtime.device
        self._specs = resources.stage.skeleton.specs(batch.x)
        self._batch, self._layout, self._step = batch, layout, step
        self._open_version, self._update = open_version, update
        self._rows = [slice(rows.start, rows.stop) for rows in layout.microbatches]
        self._rule, self._training = resources.rule, training
        self._chained = resources.rule.passes_states or not training  # inference always is a chain
        # Keys are m; None is the whole batch (or this rank's shard of it).
        self._extracted: dict[int | None, TensorTuple] = {}  # the extractor's output, with its graph
        self._shard: TensorTuple = ()  # the same without a graph, to be gathered
        self._features: dict[int, TensorTuple] = {}  # leaves, so that feature gradients collect in .grad
        self._feature_gradients: dict[int | None, TensorTuple] = {}
        self._states: dict[tuple[int, int], TensorTuple] = {}
        self._received: dict[tuple[int, int], Tensor] = {}  # what the rule keeps of each refiner's states
        self._returned: dict[tuple[int, int], Tensor] = {}
        self._targets: dict[int, Tensor] = {}
        self._losses: dict[tuple[int, int], Tensor] = {}
        self._pending = PendingMessages()
        # Without a shard, the extractor goes through a row that does not count, where others wait for its statistics.
        self._no_shard = self.view.placement.extractor == "sharded" and not layout.shard_sizes[self._rank]
        counted = batch.counted > 0
        self._statistics = resources.statistics(extractor=counted and not self._no_shard, refiners=counted)

    def do(self, action: Action) -> None:
        """Execute one action of the schedule."""
        with self._stage.sharing(self._statistics):
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        m, i = action.microbatch, action.refiner
        match action.do:
            case Do.EXTRACT:
                self._extract_shard(graph=action.graph) if m is None else self._extract(m, graph=action.graph)
            case Do.START_GATHER:
                shard, self._shard = self._shard, ()
                message = self._transport.gather_features(shard, self._specs.features, self._layout, self.view.readers)
                self._pending.start(action, message)
            case Do.AWAIT_GATHER:
                self._cut_features(self._pending.finish(Do.START_GATHER))
            case Do.START_BROADCAST:
                features = detach(self._features[known(m)]) if self._rank == 0 else None
                message = self._transport.broadcast_features(
                    features, self._specs.features, self._size(m), self.view.readers
                )
                self._pending.start(action, message)
            case Do.AWAIT_BROADCAST:
                self._features[known(m)] = self._leaves(self._pending.finish(Do.START_BROADCAST, m))
            case Do.AWAIT_BROADCASTS_SENT:
                self._pending.finish_all(Do.START_BROADCAST)
            case Do.POST_STATE:
                specs = self._specs.states[self.view.refiners.start]
                self._pending.start(action, self._transport.receive_state(specs, self._size(m), known(action.peer)))
            case Do.AWAIT_STATE:
                self._states[self.view.refiners.start, known(m)] = self._pending.finish(Do.POST_STATE, m)
            case Do.FORWARD:
                self._forward(known(i), known(m), graph=action.graph)
            case Do.SEND_STATE:
                state = self._states.pop((self.view.refiners.stop, known(m)))
                self._pending.start(action, self._transport.send_state(state, known(action.peer)))
            case Do.AWAIT_STATES_SENT:
                self._pending.finish_all(Do.SEND_STATE)
            case Do.BACKWARD:
                self._backward(known(i), known(m))
            case Do.LEARN:
                self._learn(known(m))
            case Do.START_SCATTER:
                gradient = self._local_feature_gradient(known(m))
                message = self._transport.scatter_feature_gradient(
                    gradient, self._specs.features, self._layout, known(m), self.view.readers
                )
                self._pending.start(action, message)
            case Do.AWAIT_SCATTERS:
                parts = [self._pending.finish(Do.START_SCATTER, m) for m in range(len(self._rows))]
                self._feature_gradients[None] = _concatenate(parts)
            case Do.START_REDUCE:
                gradient = self._local_feature_gradient(known(m))
                message = self._transport.reduce_feature_gradient(
                    gradient, self._specs.features, self._size(m), self.view.readers
                )
                self._pending.start(action, message)
            case Do.AWAIT_REDUCE:
                self._feature_gradients[m] = self._pending.finish(Do.START_REDUCE, m)
            case Do.AWAIT_REDUCES_SENT:
                self._pending.finish_all(Do.START_REDUCE)
            case Do.EXTRACTOR_BACKWARD:
                self._extractor_backward(m)
                if self._version.buckets is not None:
                    self._version.buckets.complete()
            case Do.RELEASE_PARAMETER_GRADIENTS:
                self._buckets.release()
            case Do.AWAIT_PARAMETER_GRADIENTS:
                self._buckets.wait()
            case Do.RELEASE_REFINER_GRADIENTS:
                self._refiner_buckets.release()
            case Do.AWAIT_REFINER_GRADIENTS:
                self._refiner_buckets.wait()
            case Do.UPDATE_EXTRACTOR | Do.UPDATE_REFINERS:
                assert self._update is not None, "only streams update within their schedule"
                self._update(action.do)

    def check_finished(self) -> None:
        """Check that no message of this batch is under way."""
        self._pending.check_finished()

    def result(self) -> StepResult:
        """What this rank's refiners received and returned."""
        refiners, batch = self.view.refiners, self._batch
        received, returned = (
            {i: [kept[i, m][: batch.counted] for m in range(len(self._rows))] for i in refiners}
            for kept in (self._received, self._returned)
        )
        y = batch.y[: batch.counted]
        return StepResult(self._rule, refiners, received, returned, y, batch.samples, batch.batch_size)

    # Features

    def _extract(self, m: int, *, graph: bool) -> None:
        self._seed("extractor", m)
        with self._version.in_use():
            features = self._stage.extract(self._batch.x[self._rows[m]], graph=graph)
        self._check_features(features)
        if graph:
            self._extracted[m] = features
        self._features[m] = self._leaves(features)

    def _extract_shard(self, *, graph: bool) -> None:
        """This rank's share of every microbatch in one forward; it may be empty."""
        if self._no_shard:
            self._shard = tuple(spec.zeros(0, self._device) for spec in self._specs.features)
        if self._no_shard and "extractor" not in self._statistics:
            return
        self._seed("extractor", 0)
        x = self._batch.x[:1] if self._no_shard else self._batch.shard(self._layout, self._rank)
        with self._version.in_use():
            features = self._stage.extract(x, graph=graph)
        self._check_features(features)
        if graph:
            self._extracted[None] = features
        if self._no_shard:
            return
        self._shard = detach(features)
        if not self.view.shares_features:
            self._cut_features(self._shard)

    def _check_features(self, features: TensorTuple) -> None:
        """Receivers have buffers for what was found at the start, and would take anything else for that."""
        check_alike("the extractor", specs_of(features), self._specs.features)

    def _cut_features(self, features: TensorTuple) -> None:
        for m, rows in enumerate(self._rows):
            self._features[m] = self._leaves(tuple(rows_of(feature, rows) for feature in features))

    def _features_of(self, m: int) -> TensorTuple:
        """Of microbatch m; their shapes alone, where features do not come to this rank."""
        if m not in self._features:
            rows, specs = self._size(m), self._specs.features
            self._features[m] = tuple(Absent.like((rows, *spec.shape), spec.dtype, self._device) for spec in specs)
        return self._features[m]

    def _leaves(self, features: TensorTuple) -> TensorTuple:
        return leaves(features, trained=self.view.trains_extractor)

    # Refiners

    def _forward(self, i: int, m: int, *, graph: bool) -> None:
        features, state = self._features_of(m), self._state_of(i, m)
        if not self._rule.trains_extractor_through(i, self.view.placement.num_refiners):
            features = detach(features)
        self._seed(f"refiners.{i}", m)
        following = self._stage.refine(i, features, state, graph=graph)
        if i + 1 < self.view.placement.num_refiners:
            check_alike(f"refiner {i}", specs_of(following), self._specs.states[i + 1])
        if graph:
            loss = self._rule.loss(i, features, state, following, self._target(m))
            self._losses[i, m] = loss.sum() * self._batch.weight if self._rule.sums_over_rows else loss
        self._keep(i, m, state, detach(following))
        if not self._training:
            del self._states[i, m]  # nobody trains on it later

    def _state_of(self, i: int, m: int) -> TensorTuple:
        """What refiner i receives: from the one before, or made here."""
        if not self._chained:
            count, part = self.view.placement.num_refiners, self._batch.part(self._rows[m])
            return self._rule.made_state(i, count, detach(self._features_of(m)), self._target(m), part)
        if i == 0 and (i, m) not in self._states:
            self._states[i, m] = initial_state(detach(self._features_of(m)), self._stage.num_classes)
        return self._states[i, m]

    def _keep(self, i: int, m: int, state: TensorTuple, following: TensorTuple) -> None:
        """Of a pass through refiner i, what is measured, and what the next one receives; unless the teacher chain of
        `two_phase` has done so already."""
        if (i, m) in self._returned:
            return
        self._received[i, m], self._returned[i, m] = self._rule.kept(state), self._rule.kept(following)
        last = i + 1 == self.view.placement.num_refiners
        if self._chained and not last:
            self._states[i + 1, m] = following

    def _target(self, m: int) -> Tensor:
        """What the rule teaches about microbatch m, the same for all refiners."""
        if m not in self._targets:
            y, belief = self._batch.y[self._rows[m]], self._specs.states[-1][0]
            self._targets[m] = self._rule.target(y, self._stage.num_classes, belief.dtype)
        return self._targets[m]

    def _backward(self, i: int, m: int) -> None:
        loss = self._losses.pop((i, m))
        if loss.requires_grad:  # not for a refiner without parameters on features that are not trained
            loss.backward()  # type: ignore[no-untyped-call]
        self._states.pop((i, m), None)
        if i == self.view.refiners[-1]:
            self._complete_refiners()

    def _learn(self, m: int) -> None:
        """Forward and backward of all this rank's refiners, whose states the teacher chain has cached."""
        assert self._resources.stacks is not None, "only `stacked` schedules learn at once"
        states = {i: self._state_of(i, m) for i in self.view.refiners}
        losses, returned = self._resources.stacks.losses(self._features_of(m), states, self._target(m))
        loss = losses * self._batch.weight if self._rule.sums_over_rows else losses
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        self._complete_refiners()  # which no hook has told: gradients come from stacked ones
        for i in self.view.refiners:
            self._keep(i, m, states[i], returned[i])
            self._states.pop((i, m), None)

    def _complete_refiners(self) -> None:
        """All of them have had their backward of a microbatch: if it was the last one, their gradients are complete."""
        if self._resources.refiner_buckets is not None:
            self._resources.refiner_buckets.complete()

    # Gradients of the features and of the extractor

    def _local_feature_gradient(self, m: int) -> tuple[Tensor | None, ...]:
        """The sum over this rank's refiners: [b, ...] per differentiable feature, None of one that is not read here.
        Microbatch m's features are done."""
        leaves = [leaf for leaf in self._features.pop(m) if is_differentiable(leaf.dtype)]
        return tuple(None if isinstance(leaf, Absent) else _gradient_of(leaf) for leaf in leaves)

    def _own_feature_gradient(self, m: int) -> TensorTuple:
        """The same where this rank alone computes it, and so has all features."""
        return tuple(gradient for gradient in self._local_feature_gradient(m) if gradient is not None)

    def _extractor_backward(self, m: int | None) -> None:
        if m not in self._extracted:  # an empty shard
            return
        if m in self._feature_gradients:
            gradient = self._feature_gradients.pop(m)
        elif m is None:
            gradient = _concatenate([self._own_feature_gradient(n) for n in range(len(self._rows))])
        else:
            gradient = self._own_feature_gradient(m)
        outputs = [feature for feature in self._extracted.pop(m) if is_differentiable(feature.dtype)]
        if self._no_shard:
            gradient = tuple(torch.zeros_like(output) for output in outputs)
        attached = [(o, g) for o, g in zip(outputs, gradient, strict=True) if o.requires_grad]
        with self._version.in_use():
            torch.autograd.backward([o for o, _ in attached], [g for _, g in attached])

    # Messages

    def _size(self, m: int | None) -> int:
        return len(self._layout.microbatches[known(m)])

    @property
    def _transport(self) -> Transport:
        assert self._resources.transport is not None, "a schedule for one rank holds no messages"
        return self._resources.transport

    @cached_property
    def _version(self) -> Version:
        return self._open_version(self._step)

    @property
    def _buckets(self) -> GradientBuckets:
        assert self._version.buckets is not None, "only ranks that hold the extractor reduce its gradients"
        return self._version.buckets

    @property
    def _refiner_buckets(self) -> GradientBuckets:
        assert self._resources.refiner_buckets is not None, "a schedule for one replica sums no refiner's gradients"
        return self._resources.refiner_buckets

    def _seed(self, part: str, m: int) -> None:
        runtime = self._stage.runtime
        own = m * runtime.num_replicas + runtime.replica  # every replica's share has random masks of its own
        self._stage.seed(part, mask_seed(self._resources.seed, part, self._step, own))


def _gradient_of(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _concatenate(parts: list[TensorTuple]) -> TensorTuple:
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
