"""SID without a flush: consecutive batches overlap, and updates of the extractor are a stated number of steps late."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor

from sidpar.actions import Action, Do
from sidpar.batching import BatchLayout
from sidpar.device import preserved_generator
from sidpar.engines import StepResult, Update
from sidpar.engines.agreement import agree_on_engine
from sidpar.engines.execution import Execution
from sidpar.engines.sid import SIDEngine
from sidpar.engines.versions import Version, Versions
from sidpar.errors import UsageError
from sidpar.objective import Objective
from sidpar.stage import Stage
from sidpar.streaming import Turn, all_streams, drain, streaming

Batch = tuple[Tensor, Tensor]


class StreamingEngine(SIDEngine):
    """Trains a stream of batches: a rank begins the next one as soon as its own work on this one is done.

        for result in engine.train(batches, update): ...

    Refiners get the exact gradient of their own loss in every step. The extractor's gradient of a batch is taken at the
    weights that made its features, and applied `staleness` steps late (DESIGN section 5; `streaming.py` says how). When
    `train` ends, nothing is in flight: every gradient has been applied once, and all ranks' extractors are equal. That
    is the point for a checkpoint or an evaluation. `step` by itself is one `fused` step, without an update.

    Args:
        microbatches: M. The chain of K ranks is hidden from about M = (K-1)/3 on, with a sharded extractor (K+4)/3.
        staleness: S >= 1. More than 1 is needed only where even that does not hide the chain, and costs accuracy.
        seed: of the random masks; the same on all ranks.
    """

    def __init__(
        self, stage: Stage, objective: Objective, *, microbatches: int = 1, staleness: int = 1, seed: int = 0
    ) -> None:
        if staleness < 1:
            raise UsageError(f"staleness must be at least 1, got {staleness}; without it, use SIDEngine")
        super().__init__(stage, objective, schedule="fused", microbatches=microbatches, seed=seed)
        agree_on_engine(stage, objective, staleness=staleness)
        self._staleness = staleness
        self._in_stream = False
        self._executions: dict[int, Execution] = {}
        self._extractors: Versions | None = None
        if self._view.runs_extractor_backward:
            self._extractors = Versions(self._extractor, staleness + 1, self._sum_extractor(), stage.compute)
        self._turns: dict[tuple[Turn, int], list[Action]] = {}

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """x [B, ...], labels [B] or [B, T], the same on every rank: gradients of one `fused` step."""
        self._refuse_within_a_stream()
        return super().step(x, y)

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        """x [B, ...], labels [B] or [B, T], the same on every rank: beliefs in inference mode, between streams."""
        self._refuse_within_a_stream()
        return super().evaluate(x, y)

    def train(self, batches: Iterable[Batch], update: Update) -> Iterator[StepResult]:
        """A turn for each batch, with `update` called for the refiners at its end, and for the extractor when an update
        of it is due. A batch of another shape than the one before begins a new stream, after a drain."""
        self._refuse_within_a_stream()
        incoming = iter(batches)
        batch, before = next(incoming, None), 0
        while batch is not None:
            following = next(incoming, None)
            last = following is None or self._key(*following) != self._key(*batch)
            turn = Turn(self._staleness, before, last)
            yield self._take(turn, batch, None if last else following, update)
            batch, before = following, 0 if last else before + 1

    @property
    def versions(self) -> list[Tensor]:
        """Weights of the extractor for batches in flight, besides its own; each has a gradient."""
        return [] if self._extractors is None else self._extractors.weights

    def lists(self, steps: int = 1) -> list[list[Action]]:
        """The actions of all ranks of a cascade, for a stream of `steps` batches with M microbatches, drained."""
        view, m, staleness = self._view, self._microbatches, self._staleness
        return all_streams(view.placement, m, staleness, steps, view.extractor_update, view.replicas)

    def _take(self, turn: Turn, batch: Batch, following: Batch | None, update: Update) -> StepResult:
        """One turn; after the last one, the drain."""
        self._check_trainable()
        layout, now = self._admit(*batch, self._microbatches), self.steps
        if turn.before == 0:
            self.stage.zero_grad()
            self._begin(now, batch, layout, update)
        self._open_refiners()
        if following is not None:
            self._begin(now + 1, following, layout, update)
        self._in_stream = not turn.last
        with preserved_generator(self._runtime.device):
            for action in self._actions_of(turn, len(layout.microbatches)):
                self._do(self._executions[now + action.step], action)
        result = self._executions[now].result()
        done = now + 1 if turn.last else now + turn.outstanding.start
        for step in [step for step in self._executions if step < done]:
            self._executions.pop(step).check_finished()
        self.steps += 1
        return result

    def _begin(self, step: int, batch: Batch, layout: BatchLayout, update: Update) -> None:
        """What the actions for the batch of `step` will work on."""
        own, carry_out = self._take_share(*batch), partial(self._update, update, step)
        self._executions[step] = Execution(self._resources, own, layout, step, self._open_version, carry_out)

    def _update(self, update: Update, step: int, do: Do) -> None:
        """Let the caller apply the gradients of the batch of `step`, and forget them."""
        extractor = do is Do.UPDATE_EXTRACTOR
        parts = {name: part for name, part in self.stage.parts().items() if (name == "extractor") == extractor}
        if extractor:
            assert self._extractors is not None, "only ranks that train the extractor update it"
            self._extractors.hand_over(step)
        update(parts)
        for part in parts.values():
            part.zero_grad()

    def _open_version(self, step: int) -> Version:
        return Version(self._extractor, None) if self._extractors is None else self._extractors.open(step)

    def _actions_of(self, turn: Turn, microbatches: int) -> list[Action]:
        alike = replace(turn, before=min(turn.before, turn.staleness + 1))
        key = (alike, microbatches)
        if key not in self._turns:
            view = replace(self._view, microbatches=microbatches)
            self._turns[key] = [*streaming(view, alike), *(drain(view, alike) if turn.last else ())]
        return self._turns[key]

    def _refuse_within_a_stream(self) -> None:
        if self._in_stream:
            raise UsageError(
                f"a stream is under way, with updates of the extractor in flight after step {self.steps}: let the loop "
                "over train() come to its end first; where it was left early, make a new engine"
            )
