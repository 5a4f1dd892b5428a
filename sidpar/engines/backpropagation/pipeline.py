"""Backpropagation over sections on ranks, by the schedules of `torch.distributed.pipelining`."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

from sidpar.cascade.cascade import TensorTuple, as_tuple
from sidpar.cascade.specs import Spec
from sidpar.config.groups.choices import PipelineName
from sidpar.config.groups.objective import Objective
from sidpar.distributed.device import move
from sidpar.engines.agreement import agree_on_batch, agree_on_engine
from sidpar.engines.backpropagation.order import SCHEDULES, torch_order
from sidpar.engines.backpropagation.torch_stage import TimedStage
from sidpar.engines.backpropagation.whole import backpropagated
from sidpar.engines.base import Synchronous, check_kept
from sidpar.engines.result import StepResult
from sidpar.errors import UsageError
from sidpar.messages.transport import Transport
from sidpar.messages.wire import Pending
from sidpar.profiler.clock import Clock
from sidpar.profiler.traffic import Traffic
from sidpar.rules.base import LocalRule
from sidpar.rules.kl import kl_to
from sidpar.schedules.actions import Action
from sidpar.schedules.cut import PIPELINES, Cut, check_microbatches
from sidpar.schedules.pipelines import pipeline_lists
from sidpar.stages.sections import Section, seams
from sidpar.stages.stage import Stage


class PipelineEngine(Synchronous):
    """Trains by the loss of the last belief, whose gradient flows back through all sections.

    Args:
        stage: placed by a `Cut` made for the same schedule.
        objective: its direction of KL and its label smoothing; alpha is 1, and `extractor_update` must be `all`.
        schedule: naive, gpipe, 1f1b, interleaved, zero_bubble, zbv or dualpipe_v.
        microbatches: M. A batch that M does not divide is padded with rows of weight 0.
        seed: of dropout masks and other random numbers in modules; the same on all ranks.

    Batch norm sees one microbatch at a time, padding included.

    Raises:
        UsageError: the schedule does not support so many ranks or microbatches, or the stage is not placed for it.
    """

    def __init__(
        self, stage: Stage, objective: Objective, *, schedule: PipelineName, microbatches: int = 1, seed: int = 0
    ) -> None:
        if schedule not in PIPELINES:
            raise UsageError(f"schedule {schedule!r} is unknown; choose one of {list(PIPELINES)}")
        check_microbatches(schedule, microbatches, stage.runtime.world_size)
        self._cut = _check_cut(stage, schedule)
        self.stage = stage
        self.rule: LocalRule = backpropagated(objective)
        self.steps = 0
        self.clock: Clock | None = None
        self._transport = Transport(stage.runtime)
        self.traffic: Traffic = self._transport.traffic
        self._schedule, self._microbatches, self._seed = schedule, microbatches, seed
        agree_on_engine(stage, self.rule, schedule=schedule, microbatches=microbatches, seed=seed)
        self._sections: dict[int, Section] = {}
        self._seams: dict[object, list[tuple[Spec, ...]]] = {}
        self._pipelines: dict[object, Any] = {}
        self._fillings: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self._places = self._targets = self._weights = torch.empty(0)

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """Compute the gradients of one batch into `stage.parameters()`, in place of those that were there.

        Args:
            x: inputs [B, ...], the same on every rank.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.

        Raises:
            UsageError: the batch does not fit the cascade, or ranks have different batches.
        """
        device = self.stage.runtime.device
        specs = self._admit(x, y, self._microbatches)
        size = math.ceil(len(x) / self._microbatches)
        pipeline = self._pipeline(x, size, specs)
        self.stage.zero_grad()
        for section in self._sections.values():
            section.step = self.steps
            section.log_beliefs.clear()
        rows, self._weights = self._filled(len(x), size * self._microbatches, y[0].numel())
        x, self._targets = move(x, device), move(y, device)
        if len(rows) > len(x):
            x, self._targets = x[rows], self._targets[rows]
        arguments = (x,) if 0 in self._sections else ()
        target = self._places[: len(rows)] if self._cut.num_sections - 1 in self._sections else None
        with self.stage.preserved_generators(), self.stage.runtime.during(f"{self._schedule} pipeline", self.steps):
            pipeline.step(*arguments, target=target)
        self.steps += 1
        return self._result(y, self._microbatches)

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        """The beliefs about one batch, in inference mode and without gradients.

        Args:
            x: inputs [B, ...], the same on every rank.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.

        Raises:
            UsageError: the batch does not fit the cascade, or ranks have different batches.
        """
        specs = self._admit(x, y, 1)
        with self.stage.inference_mode(), torch.no_grad():
            for section in self._sections.values():
                section.log_beliefs.clear()
                section.microbatch = 0
            self._forward(move(x, self.stage.runtime.device), specs)
        return self._result(y, 1)

    def clip(self, limit: float, parts: Collection[str]) -> None:
        """Scale all gradients down to the global norm `limit`, over all ranks."""
        gradients = [p.grad for p in self.stage.parameters() if p.grad is not None]
        norms = torch.nn.utils.get_total_norm(gradients).to(self.stage.runtime.device, torch.float32)
        squares = self.stage.runtime.sum("gradient norm", norms.square().reshape(1))
        factor = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0).to(self.stage.runtime.device)
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.dtype))

    def lists(self) -> list[list[Action]]:
        """All ranks' actions of a step."""
        actions = pipeline_lists(self._schedule, self._cut, self._microbatches, torch_order)
        return [list(mine) for mine in actions]

    def _admit(self, x: Tensor, y: Tensor, microbatches: int) -> list[tuple[Spec, ...]]:
        """What crosses the seams, checked on every rank before anything of a batch of a new shape is sent."""
        key = (tuple(x.shape), x.dtype, tuple(y.shape), microbatches)
        if key not in self._seams:
            agree_on_batch(
                self.stage,
                self.rule,
                x,
                y,
                self.steps,
                training=self.stage.training,
                parts=lambda: [-(-len(x) // microbatches)],
            )
            overlapping = ["extractor", "refiners"] if self._microbatches > 1 else []
            check_kept(self.stage, overlapping, microbatches=self._microbatches)
            specs = seams(self.stage, self._cut, x)
            if not self._seams:
                self.stage.runtime.connect(pipeline=True)
                features = len(self.stage.skeleton.specs(x).features)
                for index in self._cut.sections(self.stage.runtime.rank):
                    section = Section(
                        self.stage,
                        self._cut,
                        index,
                        features,
                        splits_backward=PIPELINES[self._schedule].splits_backward,
                        seed=self._seed,
                    )
                    if self.stage.compute.compile and section.layers is not None:
                        section.layers.compile()
                    self._sections[index] = section
            self._seams[key] = specs
        return self._seams[key]

    def _pipeline(self, x: Tensor, size: int, specs: list[tuple[Spec, ...]]) -> Any:
        """torch's schedule for microbatches of `size` rows like x."""
        key = (tuple(x.shape[1:]), x.dtype, size)
        if key not in self._pipelines:
            stages = [
                TimedStage(self, section, self._cut.num_sections, specs, size) for section in self._sections.values()
            ]
            schedule = SCHEDULES[self._schedule]
            several = issubclass(schedule, PipelineScheduleMulti)
            assert several or issubclass(schedule, PipelineScheduleSingle)
            self._pipelines[key] = schedule(
                stages if several else stages[0], self._microbatches, loss_fn=self._loss, scale_grads=False
            )
        return self._pipelines[key]

    def _filled(self, batch: int, filled: int, labels_per_row: int) -> tuple[Tensor, Tensor]:
        """Which row of the batch each row of the filled batch is, and what it counts in the mean over all labels.

        On the device, and once per shape: a copy from the host would wait for the device in every step."""
        key = (batch, filled, labels_per_row)
        if key not in self._fillings:
            rows = torch.arange(filled)
            weights = (rows < batch).to(torch.float64) / (batch * labels_per_row)
            rows[batch:] = 0
            device = self.stage.runtime.device
            self._fillings[key] = move(rows, device), move(weights, device)
            if filled > len(self._places):
                self._places = torch.arange(filled, device=device)
        return self._fillings[key]

    def _loss(self, log_p: Tensor, rows: Tensor) -> Tensor:
        """This microbatch's share of the mean loss over the global batch: so gradients are summed, and not scaled."""
        target = self.rule.target(self._targets[rows], self.stage.num_classes, log_p.dtype)
        losses = kl_to(log_p, target, self.rule.objective.kl)
        per_row = losses.reshape(len(losses), -1).sum(1)
        return per_row.mul(self._weights[rows].to(losses.dtype)).sum()

    def _forward(self, x: Tensor, specs: list[tuple[Spec, ...]]) -> None:
        """The plain chain of sections, on one whole batch."""
        rank, sent = self.stage.runtime.rank, []
        tensors: TensorTuple = (x,)
        for s in range(self._cut.num_sections):
            here = self._cut.rank_of(s)
            following = self._cut.rank_of(s + 1) if s + 1 < self._cut.num_sections else here
            if here == rank:
                with self.stage.runtime.during(f"evaluation of section {s}", self.steps):
                    tensors = as_tuple(self._sections[s](*tensors))
                    if following != here:
                        sent.append(self._transport.send_state(tensors, following))
            elif following == rank and s + 1 < self._cut.num_sections:
                with self.stage.runtime.during(f"await the activation from rank {here}", self.steps):
                    tensors = self._transport.receive_state(specs[s + 1], len(x), here).wait()
        _wait_all(sent)

    def _result(self, y: Tensor, microbatches: int) -> StepResult:
        log_beliefs: dict[int, list[Tensor]] = {}
        remaining = [len(y)] * microbatches
        if microbatches > 1:
            size = math.ceil(len(y) / microbatches)
            remaining = [max(0, min(size, len(y) - m * size)) for m in range(microbatches)]
        for section in self._sections.values():
            for (i, m), log_belief in sorted(section.log_beliefs.items()):
                if m == 0:
                    log_beliefs[i] = []
                log_beliefs[i].append(log_belief[: remaining[m]])
        refiners = self.stage.own_refiners
        y = move(y, self.stage.runtime.device)
        received, returned = ({i: log_beliefs[i + k] for i in refiners} for k in (0, 1))
        return StepResult(self.rule, refiners, received, returned, y, y.numel(), len(y))


def _check_cut(stage: Stage, schedule: PipelineName) -> Cut:
    pipeline, runtime = PIPELINES[schedule], stage.runtime
    cut = stage.placement
    if runtime.num_replicas > 1:
        raise UsageError(
            f"replicas={runtime.num_replicas}: a pipeline of backpropagation cannot be replicated; use 1, or "
            "BPEngine, which has a copy of the cascade on every rank"
        )
    if runtime.world_size == 1:
        raise UsageError(f"schedule={schedule} is a pipeline over ranks, but there is one process: use BPEngine")
    if (
        not isinstance(cut, Cut)
        or cut.order != pipeline.order
        or cut.num_sections != pipeline.sections_per_rank * runtime.world_size
        or cut.num_ranks != runtime.world_size
    ):
        raise UsageError(
            f"schedule={schedule} on {runtime.world_size} ranks needs a stage placed by make_cut({schedule!r}, ...) "
            f"for as many ranks, got {cut}"
        )
    if stage.compute.compile and pipeline.splits_backward:
        raise UsageError(
            f"schedule={schedule} splits the backward in two, and torch does not support that with compute.compile: "
            "set compute.compile=false, or use schedule=1f1b, gpipe or interleaved"
        )
    if pipeline.order == "v" and runtime.backend == "gloo" and torch.__version__ < "2.15":
        raise UsageError(
            f"schedule={schedule} on gloo needs torch 2.15, got {torch.__version__}: earlier versions (seen in 2.11) "
            "send a message from a rank to itself, which gloo does not do; use schedule=zero_bubble, or a newer torch"
        )
    if runtime.backend == "gloo" and runtime.device.type == "cuda":
        raise UsageError(
            "backend=gloo cannot send a pipeline's CUDA tensors from rank to rank: give every rank a GPU of its own "
            "(backend=nccl), or use device=cpu"
        )
    return cut


def _wait_all(pending: list[Pending]) -> None:
    for message in pending:
        message.wait()
