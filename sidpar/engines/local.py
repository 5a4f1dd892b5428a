"""Local learning in one process, written to be read: the reference that all other engines are tested against."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from sidpar.cascade.cascade import TensorTuple, detach, initial_state
from sidpar.cascade.specs import check_alike, specs_of
from sidpar.config.groups.objective import Objective
from sidpar.data.input_rows import Inputs
from sidpar.engines.base import Synchronous, check_batch, check_extractor_learns, check_seams, chosen, clip_each
from sidpar.engines.batch import ReplicaBatch
from sidpar.engines.result import StepResult
from sidpar.errors import UsageError
from sidpar.profiler.clock import Clock
from sidpar.profiler.traffic import Traffic
from sidpar.rules import rule_of
from sidpar.rules.base import LocalRule
from sidpar.schedules.batching import Share
from sidpar.seeding import mask_seed
from sidpar.stages.stage import Stage


class LocalEngine(Synchronous):
    """Computes the features once, then the forward and local loss of every refiner, then one backward of the sum. No
    gradient crosses refiners, because each receives a detached state.

    Args:
        stage: the whole cascade in one process.
        objective: the settings of a rule, or a rule.
        seed: of random numbers in modules, such as dropout masks, and of the rule.

    Raises:
        UsageError: there is more than one rank, or the settings do not fit the cascade.
    """

    def __init__(self, stage: Stage, objective: Objective | LocalRule, *, seed: int = 0) -> None:
        if stage.runtime.world_size != 1:
            raise UsageError(
                f"the local engine runs in one process, but there are {stage.runtime.world_size} ranks: "
                "start one, or use method=sid"
            )
        self.stage = stage
        self.rule = rule_of(objective)
        self.steps = 0
        self.clock: Clock | None = None
        self.traffic = Traffic()
        self._num_refiners = len(stage.own_refiners)
        self.rule.check(self._num_refiners)
        self._seed = seed
        self._trains_extractor = self.rule.trains_extractor and stage.skeleton.extractor_is_trainable
        if not self._trains_extractor:
            stage.freeze_extractor()
        self._admitted: set[object] = set()

    def step(self, x: Inputs, y: Tensor) -> StepResult:
        """Compute the gradients of one batch into `stage.parameters()`, in place of those that were there.

        Args:
            x: inputs [B, ...].
            y: labels [B] or [B, T], int64 in 0..C-1.

        Raises:
            UsageError: the batch does not fit the cascade.
        """
        batch = self._admit(x, y, training=True)
        self.stage.zero_grad()
        with self.stage.preserved_generators():
            seen, loss = self._forward(batch)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        self.steps += 1
        return self._result(seen, batch)

    def evaluate(self, x: Inputs, y: Tensor) -> StepResult:
        """The beliefs about one batch, in inference mode and without gradients.

        Args:
            x: inputs [B, ...].
            y: labels [B] or [B, T], int64 in 0..C-1.

        Raises:
            UsageError: the batch does not fit the cascade.
        """
        batch, seen = self._admit(x, y, training=False), _Seen({}, {})
        with self.stage.inference_mode():
            features = self.stage.extract(batch.x, graph=False)
            state = initial_state(features, self.stage.num_classes)
            for i in self.stage.own_refiners:
                following = self.stage.refine(i, features, state, graph=False)
                seen.keep(self.rule, i, state, following)
                state = following
        return self._result(seen, batch)

    def clip(self, limit: float, parts: Collection[str]) -> None:
        """Scale down the gradients of each of these parts to norm `limit` on its own."""
        clip_each(chosen(self.stage, parts), limit)

    def _forward(self, batch: ReplicaBatch) -> tuple["_Seen", Tensor]:
        """Compute what each refiner receives and returns, and the sum of the local losses."""
        rule, seen = self.rule, _Seen({}, {})
        self.stage.seed("extractor", mask_seed(self._seed, "extractor", self.steps, 0))
        features = self.stage.extract(batch.x, graph=self._trains_extractor)
        check_alike("the extractor", specs_of(features), self.stage.skeleton.specs(batch.x).features)
        state = initial_state(detach(features), self.stage.num_classes)
        target = rule.target(batch.y, self.stage.num_classes, state[0].dtype)
        losses = []
        for i in self.stage.own_refiners:
            if not rule.passes_states:
                state = rule.made_state(i, self._num_refiners, detach(features), target, batch.rows)
            self.stage.seed(f"refiners.{i}", mask_seed(self._seed, f"refiners.{i}", self.steps, 0))
            trains_extractor = rule.trains_extractor_through(i, self._num_refiners)
            read = features if trains_extractor else detach(features)
            following = self.stage.refine(i, read, state, graph=True)
            loss = rule.loss(i, read, state, following, target)
            losses.append(loss.sum() / batch.labels if rule.sums_over_rows else loss)
            seen.keep(rule, i, state, following)
            state = detach(following)
        return seen, torch.stack(losses).sum()

    def _admit(self, x: Inputs, y: Tensor, *, training: bool) -> ReplicaBatch:
        """The batch as it enters, checked if its shape is new."""
        shapes, whole, device = (x.shape, x.dtype, y.shape, training), Share(len(y), 1, 0), self.stage.runtime.device
        if shapes not in self._admitted:
            check_batch(x, y, self.stage.num_classes)
        needed = self.rows_needed(len(y), training=training)
        batch = ReplicaBatch.take(
            x, y, whole, device, self.rule, needed=needed, seed=self._seed, step=self.steps, training=training
        )
        if shapes not in self._admitted:
            check_seams(self.stage, self.rule, batch.x, batch.y, training=training, parts=[len(batch.x)])
            if training and not self.rule.loss_reads_features:
                check_extractor_learns(self.stage, self.rule, batch.x, self.stage.skeleton.reads(batch.x))
            self._admitted.add(shapes)
        return batch

    def _result(self, seen: "_Seen", batch: ReplicaBatch) -> StepResult:
        return StepResult(
            self.rule, self.stage.own_refiners, seen.received, seen.returned, batch.y, batch.samples, batch.batch_size
        )


class _Seen(NamedTuple):
    """What the rule keeps of each refiner's states, as one microbatch."""

    received: dict[int, list[Tensor]]
    returned: dict[int, list[Tensor]]

    def keep(self, rule: LocalRule, i: int, state: TensorTuple, following: TensorTuple) -> None:
        self.received[i] = [rule.kept(detach(state))]
        self.returned[i] = [rule.kept(detach(following))]
