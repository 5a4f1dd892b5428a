"""Runs a stage's refiners in stacks, each as one batched computation."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sidpar.cascade.cascade import TensorTuple, detach, is_differentiable
from sidpar.cascade.duplicate import duplicate
from sidpar.cascade.specs import Spec
from sidpar.cascade.stackable import PROBE_ROWS, REMEDY, check_structure
from sidpar.cascade.stacked import StackedRefiners
from sidpar.distributed.device import preserved_generator
from sidpar.errors import UsageError
from sidpar.rules.base import LocalRule
from sidpar.stages.stage import Stage


class Stacks:
    """This rank's refiners as stacks. Consecutive refiners that receive states of the same shapes make one stack. (In a
    cascade with hidden activations, refiner 0 receives fewer tensors than the others.)

    Raises UsageError on every rank if the refiners of any rank differ in structure; `losses` raises it if this rank's
    refiners cannot be stacked.
    """

    def __init__(self, stage: Stage, rule: LocalRule) -> None:
        self._stage = stage
        self._rule = rule
        self._stacks: list[tuple[range, StackedRefiners]] = []
        for rank in range(stage.placement.num_ranks):
            own = stage.placement.refiners(rank)
            check_structure([stage.skeleton.refiners[i] for i in own], own[0])
        normalised = any(isinstance(module, _BatchNorm) for module in stage.skeleton.refiners.modules())
        if normalised and "refiners" in stage.shared_norms:
            raise UsageError(
                "refiners that run at once send nothing within a forward, so their batch norms cannot take the "
                f"statistics of all replicas: {REMEDY}, or set parallel.sync_batchnorm=false"
            )

    def losses(
        self, features: TensorTuple, states: Mapping[int, TensorTuple], target: Tensor
    ) -> tuple[Tensor, dict[int, TensorTuple]]:
        """The sum of all refiners' local losses over the samples of a microbatch, with its graph, and what each refiner
        returns, without.

        Args:
            features: [b, ...].
            states: what each refiner receives, by its number, [b, ...].
            target: the rule's target, [b, C] or [b, T, C].
        """
        if not self._stacks:
            self._stacks = [(run, self._stack(run)) for run in _runs(states)]
        total, returned = [], dict[int, TensorTuple]()
        for run, stack in self._stacks:
            received = [states[i] for i in run]
            with self._stage.autocast(), torch.enable_grad():
                following = stack.forward(features, received)
            total.append(self._rule.losses(run, features, received, following, target).sum())
            returned |= dict(zip(run, zip(*detach(following), strict=True), strict=True))
        return torch.stack(total).sum(), returned

    def _stack(self, run: range) -> StackedRefiners:
        num_refiners = self._stage.placement.num_refiners
        sends = [self._rule.trains_extractor_through(i, num_refiners) for i in run]
        refiners = [self._stage.refiners[str(i)] for i in run]
        compiled = self._stage.compute.compile
        return StackedRefiners(refiners, first=run.start, feature_gradients=sends, compile=compiled)


def agree_on_stacks(stage: Stage, x: Tensor) -> None:
    """Try on every rank whether its refiners can be stacked, for inputs like x [B, ...]. Ranks only exchange results
    through the store. Raises UsageError, the same on every rank, if those of some rank cannot."""
    problem = None
    try:
        _try_out(stage, x)
    except UsageError as error:
        problem = str(error)
    problems = [found for found in stage.runtime.exchange("stacked refiners", problem) if found is not None]
    if problems:
        raise UsageError(problems[0])


@torch.no_grad()
def _try_out(stage: Stage, x: Tensor) -> None:
    """On copies, and on numbers of their own: what the refiners would receive, other ranks have to compute."""
    specs, device = stage.skeleton.specs(x), stage.runtime.device
    features = _made_up(specs.features, device)
    states = {}
    for i in stage.own_refiners:
        logits, *hidden = _made_up(specs.states[i], device)
        states[i] = (logits.log_softmax(-1), *hidden)
    with preserved_generator(device):
        for run in _runs(states):
            refiners = [duplicate(stage.refiners[str(i)]) for i in run]
            StackedRefiners(refiners, first=run.start).forward(features, [states[i] for i in run])


def _made_up(specs: Sequence[Spec], device: torch.device) -> TensorTuple:
    """Random numbers, the same each time; zeros for integers, which may be indices."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for spec in specs:
        tensor = spec.zeros(PROBE_ROWS, torch.device("cpu"))
        made.append((tensor.normal_(generator=generator) if is_differentiable(spec.dtype) else tensor).to(device))
    return tuple(made)


def _runs(states: Mapping[int, TensorTuple]) -> list[range]:
    """Consecutive refiners that receive states of the same shapes."""
    groups = groupby(sorted(states), key=lambda i: [tensor.shape for tensor in states[i]])
    runs = [list(run) for _, run in groups]
    return [range(run[0], run[-1] + 1) for run in runs]
