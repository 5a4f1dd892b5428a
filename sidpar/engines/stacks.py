"""A stage's refiners in stacks that run at once."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from sidpar.cascade import TensorTuple
from sidpar.losses import local_losses
from sidpar.objective import Objective
from sidpar.stackable import check_structure
from sidpar.stacked import StackedRefiners
from sidpar.stage import Stage


class Stacks:
    """This rank's refiners, each run of them that receives states of one shape as one batched computation. (In a
    cascade with hidden activations, refiner 0 receives less than the others.)

    Raises UsageError on every rank if the refiners of any rank differ in more than their numbers; `losses` raises it if
    this rank's cannot run at once.
    """

    def __init__(self, stage: Stage, objective: Objective) -> None:
        self._stage = stage
        self._objective = objective
        self._stacks: list[tuple[range, StackedRefiners]] = []
        for rank in range(stage.placement.num_ranks):
            own = stage.placement.refiners(rank)
            check_structure([stage.skeleton.refiners[i] for i in own], own[0])

    def losses(
        self,
        alphas: Sequence[float],
        features: TensorTuple,
        states: Mapping[int, TensorTuple],
        target: Tensor,
    ) -> Tensor:
        """The sum of all refiners' local losses over the samples of a microbatch, with its graph.

        Args:
            alphas: of the whole cascade.
            features: [b, ...].
            states: what each refiner receives, by its number, [b, ...].
            target: p_y [b, C] or [b, T, C].
        """
        if not self._stacks:
            self._stacks = [(run, self._stack(run)) for run in _runs(states)]
        total = []
        for run, stack in self._stacks:
            with self._stage.autocast(), torch.enable_grad():
                following = stack.forward(features, [states[i] for i in run])
            teachers = torch.stack([states[i][0] for i in run])
            own = alphas[run.start : run.stop]
            total.append(local_losses(self._objective, own, following[0], teachers, target).sum())
        return torch.stack(total).sum()

    def _stack(self, run: range) -> StackedRefiners:
        num_refiners = self._stage.placement.num_refiners
        sends = [self._objective.trains_extractor_through(i, num_refiners) for i in run]
        refiners = [self._stage.refiners[str(i)] for i in run]
        compiled = self._stage.compute.compile
        return StackedRefiners(refiners, first=run.start, feature_gradients=sends, compile=compiled)


def _runs(states: Mapping[int, TensorTuple]) -> list[range]:
    """Consecutive refiners that receive states of the same shapes."""
    groups = groupby(sorted(states), key=lambda i: [tensor.shape for tensor in states[i]])
    runs = [list(run) for _, run in groups]
    return [range(run[0], run[-1] + 1) for run in runs]
