"""SID in one process, written for reading: the oracle that every other engine is tested against."""

from collections.abc import Collection

import torch
from torch import Tensor

from sidpar.cascade.cascade import TensorTuple, detach, initial_state
from sidpar.config.groups.objective import Objective
from sidpar.distributed.device import preserved_generator, seed_generator
from sidpar.engines.base import StepResult, Synchronous, check_batch, chosen, clip_each
from sidpar.errors import UsageError
from sidpar.profiler.clock import Clock
from sidpar.profiler.traffic import Traffic
from sidpar.rules.kl import local_loss, target_of
from sidpar.seeding import mask_seed
from sidpar.stages.stage import Stage


class LocalEngine(Synchronous):
    """Features once, every refiner's forward and local loss, one backward of the sum: no gradient crosses refiners,
    because each receives a detached state."""

    def __init__(self, stage: Stage, objective: Objective, *, seed: int = 0) -> None:
        if stage.runtime.world_size != 1:
            raise UsageError(
                f"the local engine is one process, but the world has {stage.runtime.world_size} ranks: "
                "start one, or use method=sid"
            )
        self.stage = stage
        self.objective = objective
        self.steps = 0
        self.clock: Clock | None = None
        self.traffic = Traffic()
        self._alphas = objective.alphas(len(stage.own_refiners))
        self._seed = seed
        self._trains_extractor = objective.extractor_update != "frozen" and stage.skeleton.extractor_is_trainable
        if not self._trains_extractor:
            stage.freeze_extractor()
        self._admitted: set[object] = set()

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """x [B, ...], labels [B] or [B, T]: gradients into `stage.parameters()`."""
        x, y = self._admit(x, y)
        self.stage.zero_grad()
        with preserved_generator(x.device):
            states, loss = self._forward(x, y)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        self.steps += 1
        return self._result(states, y)

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        """x [B, ...], labels [B] or [B, T]: beliefs in inference mode."""
        x, y = self._admit(x, y)
        with self.stage.inference_mode():
            features = self.stage.extract(x, graph=False)
            states = [initial_state(features, self.stage.num_classes)]
            for i in self.stage.own_refiners:
                states.append(self.stage.refine(i, features, states[-1], graph=False))
        return self._result(states, y)

    def clip(self, limit: float, parts: Collection[str]) -> None:
        """Scale down the gradients of each of these parts to norm `limit` on its own."""
        clip_each(chosen(self.stage, parts), limit)

    def _forward(self, x: Tensor, y: Tensor) -> tuple[list[TensorTuple], Tensor]:
        """All states, and the sum of the local losses."""
        seed_generator(x.device, mask_seed(self._seed, "extractor", self.steps, 0))
        features = self.stage.extract(x, graph=self._trains_extractor)
        states = [initial_state(features, self.stage.num_classes)]
        target = target_of(self.objective, y, self.stage.num_classes, states[0][0].dtype)
        losses = []
        for i, alpha in zip(self.stage.own_refiners, self._alphas, strict=True):
            seed_generator(x.device, mask_seed(self._seed, f"refiners.{i}", self.steps, 0))
            trains_extractor = self.objective.trains_extractor_through(i, len(self._alphas))
            seen = features if trains_extractor else detach(features)
            state = self.stage.refine(i, seen, states[-1], graph=True)
            losses.append(local_loss(self.objective, alpha, state[0], states[-1][0], target).mean())
            states.append(detach(state))
        return states, torch.stack(losses).sum()

    def _admit(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        shapes = (x.shape, x.dtype, y.shape)
        if shapes not in self._admitted:
            check_batch(x, y, self.stage.check(x), self.stage.num_classes)
            self._admitted.add(shapes)
        return x.to(self.stage.runtime.device), y.to(self.stage.runtime.device)

    def _result(self, states: list[TensorTuple], y: Tensor) -> StepResult:
        log_beliefs = {i: [state[0]] for i, state in enumerate(states)}
        return StepResult(self.objective, self._alphas, self.stage.own_refiners, log_beliefs, y, y.numel(), len(y))
