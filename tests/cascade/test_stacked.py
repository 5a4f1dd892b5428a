"""Refiners at once against the same refiners one by one: gradients, storage, memory."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sidpar.cascade.cascade import Cascade, initial_state, refine
from sidpar.cascade.stacked import StackedRefiners
from sidpar.models.assembly import assemble
from sidpar.models.concat_refiner import ConcatRefiner
from sidpar.profiler.saved_activations import SavedTensors
from sidpar.rules.kl import local_losses
from tests import networks
from tests.cascade.stacked_problem import NETWORKS, OBJECTIVES, TOLERANCE, L, Problem, assert_equal


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_states(name: str, objective: str) -> None:
    expected, problem = Problem(name, OBJECTIVES[objective]), Problem(name, OBJECTIVES[objective])
    expected.one_by_one()
    stacked = problem.stack()
    following = problem.at_once(stacked)
    assert_equal(problem.gradients(), expected.gradients())
    for k, i in enumerate(problem.stacked):
        alone = refine(expected.cascade.refiners[i], expected.features, expected.states()[k])
        assert [tensor.shape for tensor in alone] == [tensor[k].shape for tensor in following]
        assert all((a - b[k]).abs().max() <= TOLERANCE for a, b in zip(alone, following, strict=True))


def test_microbatches_add_up() -> None:
    """Two backwards without a reset between them give twice the gradient; the rows stay those of one storage."""
    expected, problem = Problem(), Problem()
    expected.one_by_one()
    stacked = problem.stack()
    problem.at_once(stacked)
    problem.at_once(stacked)
    assert_equal(problem.gradients(), expected.gradients(), factor=2)


@pytest.mark.parametrize("to_none", [True, False])
def test_a_reset_between_steps(to_none: bool) -> None:
    expected, problem = Problem(), Problem()
    expected.one_by_one()
    stacked = problem.stack()
    for _ in range(3):
        problem.at_once(stacked)
        first = problem.gradients()
        for refiner in problem.refiners:
            refiner.zero_grad(set_to_none=to_none)
        for feature in problem.features:
            feature.grad = None
        if to_none:
            assert all(gradient is None for gradient in problem.gradients().values())
    problem.at_once(stacked)
    assert first.keys() == problem.gradients().keys()
    assert_equal(problem.gradients(), expected.gradients())


def test_a_reset_between_forward_and_backward() -> None:
    """What counts is what the parameters hold when the backward comes."""
    expected, problem = Problem(), Problem()
    expected.one_by_one()
    stacked = problem.stack()
    problem.at_once(stacked)
    states = problem.states()
    following = stacked.forward(problem.features, states)
    losses = local_losses(
        problem.objective, problem.alphas, following[0], torch.stack([s[0] for s in states]), problem.target
    )
    for holder in [*problem.refiners, *problem.features]:
        if isinstance(holder, Tensor):
            holder.grad = None
        else:
            holder.zero_grad()
    (losses.sum() / problem.y.numel()).backward()
    assert_equal(problem.gradients(), expected.gradients())


def test_a_reset_of_some() -> None:
    expected, problem = Problem(), Problem()
    expected.one_by_one()
    stacked = problem.stack()
    problem.at_once(stacked)
    problem.refiners[1].zero_grad()
    problem.at_once(stacked)
    reference = expected.gradients()
    for name, gradient in problem.gradients().items():
        factor = 1 if name.startswith("1.") else 2
        assert_equal({name: gradient}, {name: reference[name]}, factor)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_moves_the_stacked_storage(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    """Three steps end with the weights of the loop's three steps; the optimizer was made before the stacking."""
    expected, problem = Problem(), Problem()
    names = list(problem.cascade.state_dict())
    parameters = list(problem.cascade.parameters())
    optimizers = [optimizer(p.cascade.parameters(), lr=0.1) for p in (expected, problem)]
    stacked = problem.stack()
    before = {name: tensor.clone() for name, tensor in stacked.parameters.items()}
    for _ in range(3):
        expected.one_by_one()
        problem.at_once(stacked)
        for each, used in zip((expected, problem), optimizers, strict=True):
            nn.utils.clip_grad_norm_(each.refiners[0].parameters(), 0.01)
            used.step()
            used.zero_grad()
    assert list(problem.cascade.state_dict()) == names
    assert all(p is q for p, q in zip(problem.cascade.parameters(), parameters, strict=True))
    for name, weight in expected.cascade.state_dict().items():
        assert (problem.cascade.state_dict()[name] - weight).abs().max() <= 1e-10, name
    for name, tensor in stacked.parameters.items():
        assert not torch.equal(tensor, before[name]), name
        assert torch.equal(tensor, torch.stack([refiner.get_parameter(name) for refiner in problem.refiners]))


def test_a_loaded_checkpoint_is_seen() -> None:
    problem, other = Problem(), Problem()
    with torch.no_grad():
        for parameter in other.cascade.parameters():
            parameter.mul_(1.5)
    stacked = problem.stack()
    problem.cascade.load_state_dict(other.cascade.state_dict())
    other.one_by_one()
    problem.at_once(stacked)
    assert_equal(problem.gradients(), other.gradients())


class Copies(TorchDispatchMode):
    """The shapes of all tensors that are copied or put together while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        if operation.overloadpacket in [getattr(torch.ops.aten, name) for name in ("copy_", "clone", "stack", "cat")]:
            self.shapes.append(tuple(result.shape))
        return result


def test_no_weight_and_no_gradient_is_copied() -> None:
    problem = Problem()
    stacked = problem.stack()
    problem.at_once(stacked)
    problem.cascade.zero_grad()
    with Copies() as copies:
        problem.at_once(stacked)
    assert copies.shapes, "the states are stacked, so something must have been seen"
    held = {tuple(tensor.shape) for tensor in stacked.parameters.values()}
    held |= {tuple(tensor.transpose(-1, -2).shape) for tensor in stacked.parameters.values()}
    assert not held & set(copies.shapes)
    for name in stacked.parameters:
        gradients = [refiner.get_parameter(name).grad for refiner in problem.refiners]
        assert len({g.untyped_storage().data_ptr() for g in gradients if g is not None}) == 1, name


def test_memory_is_given_back() -> None:
    """zero_grad frees the stacked gradient, and nothing keeps the stacked weights once their users are gone."""
    problem = Problem()
    stacked = problem.stack()
    problem.at_once(stacked)
    assert all(tensor.grad is None for tensor in stacked.parameters.values())
    kept = weakref.ref(stacked.parameters["layers.0.weight"])
    del stacked
    gc.collect()
    assert kept() is None


def with_buffers(num_refiners: int) -> Cascade:
    """A scale in a buffer that training does not write, no bias, and one weight under two names."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(4 + networks.CLASSES, 4 + networks.CLASSES, bias=False)
            self.again = self.enter
            self.head = nn.Linear(4 + networks.CLASSES, networks.CLASSES)
            self.register_buffer("scale", torch.rand(1))

        def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
            hidden = self.again(self.enter(torch.cat([log_belief.exp(), features], -1)).tanh())
            logits: Tensor = self.head(hidden) * self.scale
            return logits

    return assemble(lambda: nn.Linear(networks.INPUTS, 4), Scaled, networks.CLASSES, num_refiners, seed=3).double()


def test_buffers_and_tied_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "buffers", with_buffers)
    expected, problem = Problem("buffers"), Problem("buffers")
    stacked = problem.stack()
    for each in (expected, problem):
        scale = each.cascade.refiners[2].scale
        assert isinstance(scale, Tensor)
        scale.mul_(3)
    expected.one_by_one()
    problem.at_once(stacked)
    assert_equal(problem.gradients(), expected.gradients())


def test_parameters_that_are_not_trained() -> None:
    expected, problem = Problem(), Problem()
    for each in (expected, problem):
        for refiner in each.refiners:
            next(iter(refiner.parameters())).requires_grad_(False)
    expected.one_by_one()
    problem.at_once(problem.stack())
    assert_equal(problem.gradients(), expected.gradients())
    assert sum(gradient is None for gradient in problem.gradients().values()) == L


@pytest.mark.parametrize("bf16", [False, True])
def test_activations_take_what_those_of_the_loop_take(bf16: bool) -> None:
    """Wider than one refiner's own weights, so that it is the activations that count."""
    refiners = [ConcatRefiner(16, [32, 32], 3) for _ in range(4)]
    features = (torch.randn(256, 16),)
    state = initial_state(features, 3)
    stacked = StackedRefiners(refiners)
    peaks = []
    for run in (
        lambda: stacked.forward(features, [state] * 4),
        lambda: [refine(refiner, features, state) for refiner in refiners],
    ):
        run()
        known = [*stacked.parameters.values(), *features]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), SavedTensors(known) as saved:
            outputs = run()
        del outputs
        peaks.append(saved.peak)
    assert peaks[0] <= 1.02 * peaks[1]


def test_bf16_autocast() -> None:
    """Products in bf16, beliefs in fp32 as everywhere, and gradients as far from the exact ones as the loop's are."""
    found = []
    for at_once, bf16 in [(False, False), (False, True), (True, True)]:
        cascade = assemble(lambda: nn.Linear(5, 32), lambda: ConcatRefiner(32, [64], 3), 3, 4, seed=1)
        features = (torch.randn(8, 32, generator=torch.Generator().manual_seed(1)),)
        state = initial_state(features, 3)
        refiners = list(cascade.refiners)
        stacked = StackedRefiners(refiners)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if at_once:
                log_beliefs = stacked.forward(features, [state] * 4)[0]
            else:
                log_beliefs = torch.stack([refine(refiner, features, state)[0] for refiner in refiners])
        assert log_beliefs.dtype == torch.float32
        log_beliefs[..., 0].sum().backward()
        found.append([p.grad for refiner in refiners for p in refiner.parameters()])
    for exact, one_by_one, at_once_gradient in zip(*found, strict=True):
        assert exact is not None
        assert at_once_gradient is not None
        assert at_once_gradient.dtype == torch.float32
        assert 0 < (at_once_gradient - exact).norm() <= 2 * (one_by_one - exact).norm()


@pytest.mark.processes
def test_compiled() -> None:
    expected, problem = Problem(), Problem()
    expected.one_by_one()
    stacked = problem.stack(compile=True)
    problem.at_once(stacked)
    problem.at_once(stacked)
    assert_equal(problem.gradients(), expected.gradients(), factor=2)


# Refusals
