"""Local learning without a flush: consecutive batches overlap, and the extractor's updates are some steps late."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from sidpar.config.groups.choices import RefinerExecution
from sidpar.config.groups.objective import Objective
from sidpar.engines.agreement import agree_on_engine
from sidpar.engines.base import Update, check_kept
from sidpar.engines.diagnosis import diagnose
from sidpar.engines.execution import Execution
from sidpar.engines.parallel import ParallelEngine
from sidpar.engines.result import StepResult
from sidpar.errors import UsageError
from sidpar.messages.gradients import GradientBuckets
from sidpar.rules.base import LocalRule
from sidpar.schedules.actions import Action, Do
from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.rank_view import RankView
from sidpar.schedules.streaming import Turn, drain, stream, streaming
from sidpar.schedules.synchronous import SCHEDULES
from sidpar.stages.stage import Stage
from sidpar.stages.versions import Version, Versions

Batch = tuple[Tensor, Tensor]


class StreamingEngine(ParallelEngine):
    """Trains a stream of batches: a rank begins the next batch as soon as its own work on the present one is done.

        for result in engine.train(batches, update): ...

    Refiners get the exact gradient of their own loss in every step. The extractor's gradient of a batch is taken at the
    weights that made its features, and applied `staleness` steps late (`schedules/streaming.py` says
    how). When `train` ends, nothing is in flight: every gradient has been applied once, and all ranks' extractors are
    equal. That is the point for a checkpoint or an evaluation. `step` by itself is one `fused` step, without an update.

    Args:
        stage: made with `extractor` and `counts`.
        objective: the settings of a rule, or a rule, by which refiners learn.
        microbatches: M. Ranks need not wait for the chain from about M = (K-1)/3 on, with a sharded extractor (K+4)/3.
        staleness: S >= 1. More than 1 is needed only where ranks would still wait for the chain, and costs accuracy.
        weight_prediction: whether features are computed with the weights that the extractor is predicted to have S
            updates later, which makes late gradients less late (`stages/versions.py`).
        refiner_execution: as for `ParallelEngine`.
        diagnose_every: steps between two observations of Proposition 5 (`diagnosis.py`), each of which costs a drain
            and two synchronous steps; 0 for none.
        seed: of dropout masks and other random numbers in modules; the same on all ranks.

    Raises:
        UsageError: the settings do not fit each other or the stage, or ranks have different ones.
    """

    def __init__(
        self,
        stage: Stage,
        objective: Objective | LocalRule,
        *,
        microbatches: int = 1,
        staleness: int = 1,
        weight_prediction: bool = False,
        refiner_execution: RefinerExecution = "loop",
        diagnose_every: int = 0,
        seed: int = 0,
    ) -> None:
        if staleness < 1:
            raise UsageError(f"staleness must be at least 1, got {staleness}; without it, use ParallelEngine")
        super().__init__(stage, objective, microbatches=microbatches, refiner_execution=refiner_execution, seed=seed)
        agree_on_engine(
            stage,
            self.rule,
            staleness=staleness,
            weight_prediction=weight_prediction,
            diagnose_every=diagnose_every,
        )
        self._staleness = staleness
        self._diagnose_every = diagnose_every
        self._old_weights: list[Tensor] = []
        self._drained_at = 0  # the step whose batch a diagnosis can compare: resumed at another, there is none
        self._in_stream = False
        self._executions: dict[int, Execution] = {}
        self._extractors: Versions | None = None
        if self._view.runs_extractor_backward:
            ahead, send = staleness if weight_prediction else 0, self._sum_extractor()
            self._extractors = Versions(self._extractor, staleness + 1, send, ahead=ahead)
        self._turns: dict[tuple[str, Turn, RankView], list[Action]] = {}

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """Compute the gradients of one batch by a `fused` step, not while `train` runs.

        Args:
            x: inputs [B, ...], the same on every rank.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.

        Raises:
            UsageError: the batch does not fit the cascade, or ranks have different batches.
        """
        self._refuse_within_a_stream()
        return super().step(x, y)

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        """The beliefs about one batch, in inference mode and without gradients, not while `train` runs.

        Args:
            x: inputs [B, ...], the same on every rank.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.

        Raises:
            UsageError: the batch does not fit the cascade, or ranks have different batches.
        """
        self._refuse_within_a_stream()
        return super().evaluate(x, y)

    def train(self, batches: Iterable[Batch], update: Update) -> Iterator[StepResult]:
        """Train on all batches. `update` is called for the refiners after their work on each batch, and for the
        extractor when an update of it is due. A batch of another shape begins a new stream, after a drain.

        Args:
            batches: inputs [B, ...] and labels [B] or [B, T], int64 in 0..C-1; the same on every rank.
            update: steps an optimizer. It is called with the names of the parts whose gradients are complete; no other
                parameter has a gradient at that time.

        Raises:
            UsageError: an earlier call of `train` has not ended, or a batch does not fit.
        """
        self._refuse_within_a_stream()
        incoming = iter(batches)
        batch, before = next(incoming, None), 0
        while batch is not None:
            following = next(incoming, None)
            due = self._diagnosis_is_due(self.steps) and self._drained_at == self.steps
            diagnosis = self._diagnose(batch) if due else None
            last = following is None or self._key(*following) != self._key(*batch)
            turn = Turn(self._staleness, before, last or self._diagnosis_is_due(self.steps + 1))
            result = self._take(turn, batch, None if turn.last else following, update)
            yield result if diagnosis is None else replace(result, diagnosis=diagnosis)
            batch, before = following, 0 if turn.last else before + 1

    @property
    def versions(self) -> list[Tensor]:
        """Weights of the extractor for batches in flight, besides its own; each has a gradient."""
        return [] if self._extractors is None else self._extractors.weights

    def carried(self) -> dict[str, Tensor]:
        """The extractor's last movement, from which its weights are predicted."""
        movement = [] if self._extractors is None else self._extractors.movement
        return dict(zip(self._movement_names, movement, strict=bool(movement)))

    def carry(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the movement that `carried` returned, if weights were predicted there and are predicted here."""
        if self._extractors is not None and tensors:
            self._extractors.resume([tensors[name].to(self._runtime.device) for name in self._movement_names])

    @property
    def _movement_names(self) -> list[str]:
        if self._extractors is None:
            return []
        return [f"extractor.{name}/movement" for name, p in self._extractor.named_parameters() if p.requires_grad]

    def lists(self, steps: int = 1) -> list[list[Action]]:
        """The actions of all ranks of a cascade, for a stream of `steps` batches with M microbatches, drained."""
        whole = partial(stream, staleness=self._staleness, steps=steps)
        return [self._in_order(whole, view) for view in self._views]

    def _take(self, turn: Turn, batch: Batch, following: Batch | None, update: Update) -> StepResult:
        """One turn; after the last one, the drain."""
        self._check_trainable()
        layout, now = self._admit(*batch, self._microbatches, training=True), self.steps
        if turn.before == 0:
            self.stage.zero_grad()
            self._begin(now, batch, layout, update)
        self._open_refiners()
        if following is not None:
            self._begin(now + 1, following, layout, update)
        self._in_stream = not turn.last
        with self.stage.preserved_generators():
            view = self._executions[now].view
            for action in self._actions_of(turn, streaming, view):
                self._do(self._executions[now + action.step], action)
            if turn.last:
                self._drained_at = now + 1
            if turn.last and self._diagnosis_is_due(now + 1) and self._extractors is not None:
                self._old_weights = [weight.detach().clone() for weight in self._extractors.expected]
            for action in self._actions_of(turn, drain, view) if turn.last else ():
                self._do(self._executions[now + action.step], action)
        result = self._executions[now].result()
        done = now + 1 if turn.last else now + turn.outstanding.start
        for step in [step for step in self._executions if step < done]:
            self._executions.pop(step).check_finished()
        self.steps += 1
        return result

    def _begin(self, step: int, batch: Batch, layout: BatchLayout, update: Update) -> None:
        """What the actions for the batch of `step` will work on."""
        own, carry_out = self._take_share(*batch, step, training=True), partial(self._update, update, step)
        view = self._view_of(own.x, layout)
        self._executions[step] = Execution(self._resources, view, own, layout, step, self._open_version, carry_out)

    def _update(self, update: Update, step: int, do: Do) -> None:
        """Let the caller apply the gradients of the batch of `step`, and forget them. Meanwhile no other parameter has
        one: the refiners' may be half summed up, and one optimizer for all parameters would apply them."""
        extractor, parts = do is Do.UPDATE_EXTRACTOR, self.stage.parts()
        due = [name for name in parts if (name == "extractor") == extractor]
        others = [p for name, part in parts.items() if name not in due for p in part.parameters()]
        kept = [p.grad for p in others]
        for parameter in others:
            parameter.grad = None
        if extractor:
            assert self._extractors is not None, "only ranks that train the extractor update it"
            with self._extractors.updating(step):
                update(due)
        else:
            update(due)
        for name in due:
            parts[name].zero_grad()
        for parameter, gradient in zip(others, kept, strict=True):
            parameter.grad = gradient

    def _open_version(self, step: int) -> Version:
        return Version.as_it_is() if self._extractors is None else self._extractors.open(step)

    def _extractor_buckets(self) -> GradientBuckets | None:
        return None if self._extractors is None else self._extractors.of(self.steps).buckets

    def _open_alone(self, step: int) -> Version:
        if self._extractors is None:
            return Version.as_it_is()
        with self._extractors.rehearsing():
            return self._extractors.open(step)

    def _actions_of(
        self, turn: Turn, schedule: Callable[[RankView, Turn], Iterator[Action]], view: RankView
    ) -> list[Action]:
        alike = replace(turn, before=min(turn.before, turn.staleness + 1))
        key = (schedule.__name__, alike, view)
        if key not in self._turns:
            self._turns[key] = self._in_order(lambda view: schedule(view, alike), view)
        return self._turns[key]

    def _diagnosis_is_due(self, step: int) -> bool:
        """Before the batch of `step`, with nothing in flight."""
        return self._diagnose_every > 0 and step > 0 and step % self._diagnose_every == 0

    def _diagnose(self, batch: Batch) -> dict[str, Any]:
        """Proposition 5 on a batch: with the weights of now, and with those that the stream would have used."""
        extractors, old_weights = self._extractors, self._old_weights
        layout = self._admit(*batch, self._microbatches, training=True)

        def step(open_version: Callable[[int], Version]) -> StepResult:
            self.stage.zero_grad()
            self._open_refiners()
            return self._execute(SCHEDULES["fused"], *batch, layout, open_version)

        def stale() -> StepResult:
            if extractors is None:
                return step(self._open_version)
            result = step(lambda step: extractors.open(step, old_weights))
            extractors.hand_over(self.steps)
            return result

        weights = [] if extractors is None else extractors.present
        with self.stage.preserved_generators():
            return diagnose(self.stage, lambda: step(self._open_extractor), stale, weights, old_weights)

    def _check_kept(self, microbatches: int) -> None:
        super()._check_kept(microbatches)
        kept = self.stage.kept["extractor"]
        check_kept(self.stage, ["extractor"])
        if kept.trained:
            raise UsageError(
                f"the forward of the extractor writes into parameters that are trained ({', '.join(kept.trained)}), "
                "but in a stream each batch has weights of its own for as long as it is in flight: use schedule=fused, "
                "or write after the update"
            )

    def _refuse_within_a_stream(self) -> None:
        if self._in_stream:
            raise UsageError(
                f"train() has not ended: updates of the extractor are in flight after step {self.steps}. Let the loop "
                "over train() run to its end first; if it was left early, make a new engine"
            )
