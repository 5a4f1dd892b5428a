"""SID in one process, written for reading: the oracle that every other engine is tested against."""

import torch
from torch import Tensor

from sidpar.cascade import TensorTuple, detach, initial_state
from sidpar.device import preserved_generator, seed_generator
from sidpar.engines import StepResult
from sidpar.objective import Objective
from sidpar.seeding import mask_seed
from sidpar.stage import Stage


class LocalEngine:
    """Features once, every refiner's forward and local loss, one backward of the sum: no gradient crosses refiners,
    because each receives a detached state."""

    def __init__(self, stage: Stage, objective: Objective, *, seed: int = 0) -> None:
        if stage.runtime.world_size != 1:
            raise ValueError(f"the local engine is one process, but the world has {stage.runtime.world_size} ranks")
        self.stage = stage
        self.steps = 0
        self._objective = objective
        self._alphas = objective.alphas(len(stage.own_refiners))
        self._seed = seed

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        x, y = x.to(self.stage.runtime.device), y.to(self.stage.runtime.device)
        self.stage.zero_grad()
        with preserved_generator(x.device):
            states, loss = self._forward(x, y)
            loss.backward()  # type: ignore[no-untyped-call]
        self.steps += 1
        return self._result(states, y)

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        x, y = x.to(self.stage.runtime.device), y.to(self.stage.runtime.device)
        self.stage.eval()
        features = self.stage.extract(x, graph=False)
        states = [initial_state(features, self.stage.num_classes)]
        for i in self.stage.own_refiners:
            states.append(self.stage.refine(i, features, states[-1], graph=False))
        self.stage.train()
        return self._result(states, y)

    def _forward(self, x: Tensor, y: Tensor) -> tuple[list[TensorTuple], Tensor]:
        trained = self._objective.extractor_update != "frozen"
        seed_generator(x.device, mask_seed(self._seed, "extractor", self.steps, 0))
        features = self.stage.extract(x, graph=trained)
        states = [initial_state(features, self.stage.num_classes)]
        target = self._objective.target(y, self.stage.num_classes, states[0][0].dtype)
        losses = []
        for i, alpha in zip(self.stage.own_refiners, self._alphas, strict=True):
            seed_generator(x.device, mask_seed(self._seed, f"refiners.{i}", self.steps, 0))
            trains_extractor = self._objective.trains_extractor_through(i, len(self._alphas))
            seen = features if trains_extractor else detach(features)
            state = self.stage.refine(i, seen, states[-1], graph=True)
            losses.append(self._objective.local_loss(alpha, state[0], states[-1][0], target).mean())
            states.append(detach(state))
        return states, torch.stack(losses).sum()

    def _result(self, states: list[TensorTuple], y: Tensor) -> StepResult:
        return StepResult(self._objective, self._alphas, self.stage.own_refiners, [state[0] for state in states], y)
