"""Backpropagation through the whole cascade: in one process, or data-parallel with DistributedDataParallel (DDP)."""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sidpar.cascade.cascade import TensorTuple, initial_state
from sidpar.config.groups.objective import Objective
from sidpar.distributed.device import move
from sidpar.engines.agreement import agree_on_batch, agree_on_engine
from sidpar.engines.base import Synchronous, check_kept
from sidpar.engines.resources import send_statistics_first, statistics_of
from sidpar.engines.result import StepResult
from sidpar.errors import UsageError
from sidpar.messages.transport import Transport
from sidpar.profiler.clock import Clock, span
from sidpar.profiler.memory import bytes_of
from sidpar.profiler.traffic import Traffic
from sidpar.rules.base import LocalRule
from sidpar.rules.kl import kl_to
from sidpar.rules.sid import SID
from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.placement import Copies
from sidpar.seeding import mask_seed
from sidpar.stages.stage import Stage

_IN_PARTS = (
    "DDP takes a gradient that comes in several parts for complete after the first one: where one parameter is used in "
    "several checkpointed places, call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
)


class BPEngine(Synchronous):
    """Trains by the loss of the last belief, whose gradient flows through all beliefs before it.

    On K > 1 ranks, each computes 1/K of every batch with a copy of the whole cascade, and DDP sums the gradients over
    ranks while the backward runs. Batch norm then sees 1/K of a microbatch, as always with DDP, or all of it with
    `Stage(..., sync_batchnorm=True)`.

    Args:
        stage: placed as `Copies`.
        objective: its direction of KL and its label smoothing; alpha is 1, and `extractor_update` must be `all`.
        microbatches: M; the gradients of a batch are accumulated over M parts of it.
        checkpointing: keep only the inputs of each refiner, and compute the rest again in the backward.
        deep_supervision: train on the sum of all refiners' losses instead of the last one's.
        seed: of dropout masks and other random numbers in modules; the same on all ranks.

    Raises:
        UsageError: the stage is not placed as `Copies`, the objective is a local rule's, or ranks have different
            settings.
    """

    def __init__(
        self,
        stage: Stage,
        objective: Objective,
        *,
        microbatches: int = 1,
        checkpointing: bool = False,
        deep_supervision: bool = False,
        seed: int = 0,
    ) -> None:
        if not isinstance(stage.placement, Copies):
            raise UsageError("BPEngine needs the whole cascade on every rank: Stage(..., placement=Copies(L, K))")
        if microbatches < 1:
            raise UsageError(f"microbatches must be at least 1, got {microbatches}")
        self.stage = stage
        self.rule: LocalRule = backpropagated(objective)
        self.steps = 0
        self.clock: Clock | None = None
        self._transport = Transport(stage.runtime) if stage.shared_norms else None
        self.traffic = Traffic() if self._transport is None else self._transport.traffic
        self._microbatches = microbatches
        self._checkpointing = checkpointing
        self._heads = list(stage.own_refiners) if deep_supervision else [stage.placement.num_refiners - 1]
        self._seed = seed
        agree_on_engine(
            stage,
            self.rule,
            microbatches=microbatches,
            checkpointing=checkpointing,
            deep_supervision=deep_supervision,
            seed=seed,
        )
        self._layouts: dict[tuple[object, ...], BatchLayout] = {}
        self._chain = _Chain(stage)
        self._parallel: nn.Module = self._chain
        trained, ranks = bytes_of(p for p in stage.parameters() if p.requires_grad), stage.runtime.world_size
        self._sent = 2 * (ranks - 1) / ranks * trained
        self._buckets = 0

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """Compute the gradients of one batch into `stage.parameters()`, in place of those that were there.

        Args:
            x: inputs [B, ...], the same on every rank.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.

        Raises:
            UsageError: the batch does not fit the cascade, or ranks have different batches.
        """
        layout = self._admit(x, y)
        self.stage.zero_grad()
        seen: list[list[Tensor]] = []
        labels = []
        with self.stage.preserved_generators():
            for m in range(len(layout.microbatches)):
                rows = self._rows(layout, m)
                last = m == len(layout.microbatches) - 1
                during = self.stage.runtime.during(f"microbatch {m}", self.steps)
                with self._accumulation(last), during, self._sharing(rows):
                    log_beliefs = self._learn(m, *self._move(x, y, rows), y.numel())
                seen.append([log_belief.detach()[: len(rows)] for log_belief in log_beliefs])
                labels.append(y[rows.start : rows.stop])
        if isinstance(self._parallel, DistributedDataParallel):
            self.traffic.count("parameter gradients", self._sent, self._count_buckets())
        self.steps += 1
        return self._result(seen, torch.cat(labels), y)

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        """The beliefs about this rank's share of one batch, in inference mode and without gradients.

        Args:
            x: inputs [B, ...], the same on every rank.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.

        Raises:
            UsageError: the batch does not fit the cascade, or ranks have different batches.
        """
        layout = self._admit(x, y, 1)
        rows = self._rows(layout, 0)
        with self.stage.inference_mode(), torch.no_grad(), self._sharing(rows):
            # Through DDP, which first gives all ranks rank 0's running statistics, those that are saved.
            seen = [log_belief[: len(rows)] for log_belief in self._parallel(self._move(x, y, rows)[0])]
        return self._result([seen], y[rows.start : rows.stop], y)

    def clip(self, limit: float, parts: Collection[str]) -> None:
        """Scale all gradients down to the global norm `limit`; every rank has all of them."""
        nn.utils.clip_grad_norm_(self.stage.parameters(), limit)

    def _learn(self, m: int, x: Tensor, y: Tensor, weight: float, samples: int) -> list[Tensor]:
        """Forward and backward of this rank's share of microbatch m."""
        with span(self.clock, "forward", f"microbatch {m}"):
            # Every rank's share has random masks of its own.
            share = m * self.stage.runtime.world_size + self.stage.runtime.rank
            self._chain.prepare(self._seed, self.steps, share, self._checkpointing)
            log_beliefs: list[Tensor] = self._parallel(x)
            target = self.rule.target(y, self.stage.num_classes, log_beliefs[0].dtype)
            losses = [kl_to(log_beliefs[i + 1], target, self.rule.objective.kl).sum() for i in self._heads]
        with span(self.clock, "backward", f"microbatch {m}"):
            # The mean over the global batch, of which DDP takes the mean over ranks once more.
            loss = torch.stack(losses).sum() * (weight * self.stage.runtime.world_size / samples)
            try:
                loss.backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                if "mark a variable ready only once" in str(error):
                    raise UsageError(_IN_PARTS) from error
                raise
        return log_beliefs

    def _admit(self, x: Tensor, y: Tensor, microbatches: int | None = None) -> BatchLayout:
        key = (tuple(x.shape), x.dtype, tuple(y.shape), microbatches)
        if key not in self._layouts:
            training = microbatches is None
            layout = BatchLayout(len(x), microbatches or self._microbatches, self.stage.runtime.world_size)
            agree_on_batch(
                self.stage,
                self.rule,
                x,
                y,
                self.steps,
                training=training,
                parts=lambda: layout.part_sizes,
                accompanied=lambda: min(layout.sizes) > 1,
            )
            if training:
                check_kept(self.stage, microbatches=self._microbatches, ranks=self.stage.runtime.world_size)
            if not self._layouts:
                self._parallel = self._data_parallel(x)
            self._layouts[key] = layout
        return self._layouts[key]

    def _data_parallel(self, x: Tensor) -> nn.Module:
        """The chain for inputs like x [B, ...], its gradients summed over ranks if there are several."""
        runtime = self.stage.runtime
        if runtime.groups is None or runtime.world_size == 1:
            return self._chain
        send_statistics_first(self.stage, self._transport)
        # DDP waits for the gradients of all parameters, or looks for those without in every step, which takes time.
        unused = self.stage.skeleton.without_gradient(x, self._heads)
        if unused is None and self._checkpointing:  # where DDP would look, it sees nothing of what is computed again
            raise UsageError(
                "which parameters get a gradient cannot be inferred, because a forward looks at data, and DDP cannot "
                "find out with bp.checkpointing=true: set bp.checkpointing=false"
            )
        if unused and self._checkpointing:
            raise UsageError(
                f"{unused[0]} gets no gradient from the loss, but DDP with bp.checkpointing=true would wait for "
                "one: set bp.checkpointing=false, use the parameter, or freeze it by requires_grad_(False)"
            )
        return DistributedDataParallel(
            self._chain,
            device_ids=[runtime.device] if runtime.device.type == "cuda" else None,
            process_group=runtime.groups.default,
            gradient_as_bucket_view=True,
            find_unused_parameters=unused is None or bool(unused),
        )

    def _rows(self, layout: BatchLayout, m: int) -> range:
        """The rows of the batch that are this rank's share of microbatch m."""
        start, part = layout.microbatches[m].start, layout.parts[m][self.stage.runtime.rank]
        return range(start + part.start, start + part.stop)

    def _move(self, x: Tensor, y: Tensor, rows: range) -> tuple[Tensor, Tensor, float]:
        """These rows on the device, and their weight. A rank without a share takes part with weight 0: DDP waits for
        the gradients of every rank."""
        taken = slice(rows.start, rows.stop) if rows else slice(0, 1)
        device = self.stage.runtime.device
        return move(x[taken], device), move(y[taken], device), 1.0 if rows else 0.0

    def _sharing(self, rows: range) -> AbstractContextManager[None]:
        """Batch norms that share their statistics do so within, and these rows count, if there are any."""
        counts = bool(rows)
        return self.stage.sharing(statistics_of(self.stage, self._transport, extractor=counts, refiners=counts))

    def _accumulation(self, last: bool) -> AbstractContextManager[None]:
        """Gradients travel with the last microbatch only."""
        if last or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        synchronisation: AbstractContextManager[None] = self._parallel.no_sync()
        return synchronisation

    def _count_buckets(self) -> int:
        """Messages per step. DDP rebuilds its buckets once, after the first step, so the second one's number stays."""
        if self.steps < 2:
            logged: dict[str, Any] = self._parallel._get_ddp_logging_data()  # type: ignore[operator]
            self._buckets = len(str(logged.get("bucket_sizes", "")).split(","))
        return self._buckets

    def _result(self, seen: list[list[Tensor]], y: Tensor, whole: Tensor) -> StepResult:
        """`y` are the labels of this rank's share of `whole`."""
        refiners = self.stage.own_refiners
        received, returned = ({i: [part[i + k] for part in seen] for i in refiners} for k in (0, 1))
        y = move(y, self.stage.runtime.device)
        return StepResult(self.rule, refiners, received, returned, y, whole.numel(), len(whole))


class _Chain(nn.Module):
    """Images [b, ...] to the log-beliefs 0..L, with one graph from end to end."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.prepare(0, 0, 0, False)

    def prepare(self, seed: int, step: int, m: int, checkpointing: bool) -> None:
        """Say which microbatch the next forward is."""
        self._mask = (seed, step, m)
        self._checkpointing = checkpointing

    def forward(self, x: Tensor) -> list[Tensor]:
        stage = self.stage
        self._seed_masks("extractor")
        features = stage.extract(x, graph=torch.is_grad_enabled())
        state = initial_state(features, stage.num_classes)
        if self._checkpointing and torch.is_grad_enabled():
            state[0].requires_grad_()  # or nothing that enters refiner 0 might, and checkpointing would cut the graph
        log_beliefs = [state[0]]
        for i in stage.own_refiners:
            state = self._refine(i, features, state)
            log_beliefs.append(state[0])
        return log_beliefs

    def _refine(self, i: int, features: TensorTuple, state: TensorTuple) -> TensorTuple:
        def refine(*tensors: Tensor) -> TensorTuple:
            seen, received = tensors[: len(features)], tensors[len(features) :]
            self._seed_masks(f"refiners.{i}")  # here, so that computing it again draws the same
            return self.stage.refine(i, seen, received, graph=torch.is_grad_enabled())

        if not (self._checkpointing and torch.is_grad_enabled()):
            return refine(*features, *state)
        # The reentrant form keeps what enters as saved tensors, and computes the rest again under whatever hooks are
        # set on saved tensors: the memory counter sees all of it.
        following: TensorTuple = checkpoint(refine, *features, *state, use_reentrant=True)
        return following

    def _seed_masks(self, part: str) -> None:
        seed, step, m = self._mask
        self.stage.seed(part, mask_seed(seed, part, step, m))


def backpropagated(objective: Objective) -> SID:
    """The rule that backpropagation is measured by: the divergence from the target, as in training, without teachers.
    Raises UsageError for a local rule."""
    if isinstance(objective, LocalRule) or objective.rule != Objective.rule or objective.options:
        raise UsageError("backpropagation has one loss and no local rule: give it an Objective without rule or options")
    if objective.extractor_update != "all":
        raise UsageError(
            f"objective.extractor_update={objective.extractor_update} chooses among local losses, but backpropagation "
            "has none: remove it"
        )
    return SID(replace(objective, alpha=1.0))
