"""Refiners at once against the same refiners one by one: gradients, storage, refusals."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sidpar.cascade import Cascade, TensorTuple, detach, extract, initial_state, refine
from sidpar.losses import local_loss, local_losses, target_of
from sidpar.memory import SavedTensors
from sidpar.models import ConcatRefiner
from sidpar.models.assembly import assemble
from sidpar.objective import Objective
from sidpar.stackable import PROBE_ROWS
from sidpar.stacked import StackedRefiners
from tests import networks

TOLERANCE = 1e-12
L = 5

NETWORKS: dict[str, Callable[[int], Cascade]] = {
    "plain": networks.plain,
    "with_hidden_state": networks.with_hidden_state,
    "with_float_state": networks.with_float_state,
    "tokens": networks.tokens,
}
OBJECTIVES = {
    "forward": Objective(0.3),
    "reverse": Objective(0.3, "reverse", 0.1),
    "an alpha for each, forward": Objective([0.2, 1.0, 0.5, 0.7, 0.9]),
    "an alpha for each, reverse": Objective([0.2, 1.0, 0.5, 0.7, 0.9], "reverse", 0.1),
    "deep supervision": Objective(1.0),
    "final": Objective(0.3, extractor_update="final"),
    "frozen": Objective(0.3, extractor_update="frozen"),
}


class Problem:
    """A cascade of L refiners with a batch, of which `stacked` run at once, from the first that receives what all of
    them receive: a chain's first refiner receives no hidden activation."""

    def __init__(self, name: str = "plain", objective: Objective = OBJECTIVES["forward"], rows: int = 6) -> None:
        self.cascade = NETWORKS[name](L)
        self.objective = objective
        x, self.y = networks.batch(rows, 5 if name == "tokens" else None)
        self.features = tuple(
            f.detach().requires_grad_(f.is_floating_point()) for f in extract(self.cascade.extractor, x)
        )
        self.target = target_of(objective, self.y, networks.CLASSES, torch.float64)
        self.alphas = objective.alphas(L)
        self.first = 1 if name.startswith("with_") else 0

    @property
    def stacked(self) -> range:
        return range(self.first, L)

    @property
    def refiners(self) -> list[nn.Module]:
        return [self.cascade.refiners[i] for i in self.stacked]

    def stack(self, **options: Any) -> StackedRefiners:
        sends = [self.objective.trains_extractor_through(i, L) for i in self.stacked]
        return StackedRefiners(self.refiners, first=self.first, feature_gradients=sends, **options)

    @torch.no_grad()
    def states(self) -> list[TensorTuple]:
        """What the stacked refiners receive."""
        states = [initial_state(self.features, networks.CLASSES)]
        for refiner in self.cascade.refiners:
            states.append(refine(refiner, self.features, states[-1]))
        return states[self.first : L]

    def one_by_one(self) -> None:
        for i, state in zip(self.stacked, self.states(), strict=True):
            sends = self.objective.trains_extractor_through(i, L)
            following = refine(self.cascade.refiners[i], self.features if sends else detach(self.features), state)
            losses = local_loss(self.objective, self.alphas[i], following[0], state[0], self.target)
            (losses.sum() / self.y.numel()).backward()

    def at_once(self, stacked: StackedRefiners) -> TensorTuple:
        states = self.states()
        following = stacked.forward(self.features, states)
        teachers = torch.stack([state[0] for state in states])
        losses = local_losses(self.objective, self.alphas[self.first :], following[0], teachers, self.target)
        (losses.sum() / self.y.numel()).backward()
        return following

    def gradients(self) -> dict[str, Tensor | None]:
        """Of every parameter of the stacked refiners and of the features."""
        found = {f"{i}.{name}": p.grad for i in self.stacked for name, p in self.cascade.refiners[i].named_parameters()}
        return found | {f"feature {place}": feature.grad for place, feature in enumerate(self.features)}


def assert_equal(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], factor: float = 1.0) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        other = expected[name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            assert gradient.abs().max() > 0, name
            assert (gradient - factor * other).abs().max() <= TOLERANCE, name


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


def test_compiled() -> None:
    expected, problem = Problem(), Problem()
    expected.one_by_one()
    stacked = problem.stack(compile=True)
    problem.at_once(stacked)
    problem.at_once(stacked)
    assert_equal(problem.gradients(), expected.gradients(), factor=2)


# Refusals


def build(*refiners: nn.Module, **options: Any) -> StackedRefiners:
    return StackedRefiners(list(refiners), **options)


def refused(problem: Problem, message: str) -> None:
    stacked = problem.stack()
    with pytest.raises(ValueError, match=message):
        stacked.forward(problem.features, problem.states())


def test_other_shapes_are_refused() -> None:
    message = (
        r"refiner 6 differs from refiner 4, .*: layers.0.weight is \[8, 7\] torch.float32 on cpu, trained instead of "
        r"\[7, 7\] torch.float32 on cpu, trained; use parallel.refiner_execution=loop, or make them equal"
    )
    with pytest.raises(ValueError, match=message):
        build(ConcatRefiner(4, [7], 3), ConcatRefiner(4, [7], 3), ConcatRefiner(4, [8], 3), first=4)


def test_other_depths_dtypes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"refiner 1 .*layers.4.weight is \[3, 3\].* instead of missing"):
        build(ConcatRefiner(4, [7], 3), ConcatRefiner(4, [7, 3], 3))
    with pytest.raises(ValueError, match="refiner 1 .*layers.0.weight is .*float64.* instead of .*float32"):
        build(ConcatRefiner(4, [7], 3), ConcatRefiner(4, [7], 3).double())
    with pytest.raises(ValueError, match="the type of the refiner is tests.networks.Masked instead of sidpar.models"):
        build(ConcatRefiner(4, [7], 3), networks.Masked())
    with pytest.raises(ValueError, match="refiner 1 .*: 1.negative_slope is 0.2 instead of 0.1"):
        build(*(nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(slope)) for slope in (0.1, 0.2)))


def test_shared_parameters_are_refused() -> None:
    one, other = ConcatRefiner(4, [7], 3), ConcatRefiner(4, [7], 3)
    other.layers[0].weight = one.layers[0].weight
    with pytest.raises(ValueError, match="refiner 3 shares layers.0.weight with refiner 2.*refiner_execution=loop"):
        build(one, other, first=2)


def test_random_numbers_are_refused_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "dropout", networks.with_dropout)
    refused(
        Problem("dropout"), "refiner 0 draws random numbers in its forward, .*refiner_execution=loop, or refiners w"
    )
    problem = Problem("dropout")
    stacked = problem.stack()
    problem.cascade.eval()
    problem.at_once(stacked)


def test_a_dropout_layer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropping() -> nn.Module:
        refiner = ConcatRefiner(4, [7], networks.CLASSES)
        refiner.layers.append(nn.Dropout(0.5))
        return refiner

    build_cascade = partial_cascade(dropping)
    monkeypatch.setitem(NETWORKS, "dropout", build_cascade)
    refused(Problem("dropout"), r"refiner 0 draws random numbers in its forward, layers.3 \(Dropout\), and refiners")


def partial_cascade(refiner: Callable[[], nn.Module]) -> Callable[[int], Cascade]:
    def cascade(num_refiners: int) -> Cascade:
        extractor = nn.Linear(networks.INPUTS, 4)
        return Cascade(extractor, [refiner() for _ in range(num_refiners)], networks.CLASSES).double()

    return cascade


def test_running_statistics_are_refused_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "noisy", networks.noisy)
    message = (
        r"refiner 0 writes buffers in its forward \(layers.1.running_mean, layers.1.running_var, "
        r"layers.1.num_batches_tracked, layers.1 \(BatchNorm1d\)\).*loop, or layers without running statistics"
    )
    refused(Problem("noisy"), message)
    problem = Problem("noisy")
    stacked = problem.stack()
    problem.cascade.eval()
    problem.at_once(stacked)


def test_a_refused_trial_leaves_the_statistics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "noisy", networks.noisy)
    problem = Problem("noisy")
    stacked = problem.stack()
    states = problem.states()
    before = {name: buffer.clone() for name, buffer in problem.cascade.named_buffers()}
    with pytest.raises(ValueError, match="writes buffers"):
        stacked.forward(problem.features, states)
    assert all(torch.equal(buffer, before[name]) for name, buffer in problem.cascade.named_buffers())


def test_code_that_cannot_be_batched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(ConcatRefiner):
        def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
            logits = super().forward(features, log_belief)
            return logits if logits.sum().item() > 0 else -logits

    monkeypatch.setitem(NETWORKS, "branching", partial_cascade(lambda: Branching(4, [7], networks.CLASSES)))
    refused(Problem("branching"), r"refiner 0 and those like it cannot run at once \(vmap: .*refiner_execution=loop")


def test_code_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In what no comparison of attributes shows: a function that each refiner holds."""

    class Holding(ConcatRefiner):
        made = 0

        def __init__(self) -> None:
            super().__init__(4, [7], networks.CLASSES)
            Holding.made += 1
            self.scale = [1.0 if Holding.made < 3 else 2.0]

        def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
            return super().forward(features, log_belief) * self.scale[0]

    monkeypatch.setitem(NETWORKS, "holding", partial_cascade(Holding))
    refused(Problem("holding"), "refiner 2 gives another result one by one than at once, where the code of refiner 0")


def test_states_of_other_shapes_are_refused() -> None:
    problem = Problem("with_hidden_state")
    problem.first = 0
    message = (
        r"refiner 1 receives a state of shapes \[\[6, 3\], \[6, 6\]\], refiner 0 one of \[\[6, 3\]\], "
        r".*loop, or stack only those that do"
    )
    refused(problem, message)


@pytest.mark.parametrize(
    "change",
    [
        lambda cascade: cascade.float(),
        lambda cascade: cascade.load_state_dict({k: v.clone() for k, v in cascade.state_dict().items()}, assign=True),
    ],
)
def test_parameters_that_left_the_storage_are_refused(change: Callable[[Cascade], Any]) -> None:
    problem = Problem()
    stacked = problem.stack()
    states = problem.states()
    change(problem.cascade)
    with pytest.raises(ValueError, match=r"layers.0.weight of refiner 0 was moved, converted or replaced after"):
        stacked.forward(problem.features, states)


def test_the_trial_takes_few_rows_once_per_mode() -> None:
    """A trial costs the n forwards that stacking is there to avoid."""
    problem = Problem(rows=3 * PROBE_ROWS)
    rows: list[int] = []
    problem.refiners[-1].register_forward_hook(lambda _, arguments, __: rows.append(len(arguments[0])))
    stacked = problem.stack()
    states = problem.states()
    rows.clear()
    for _ in range(3):
        stacked.forward(problem.features, states)
    problem.cascade.eval()
    stacked.forward(problem.features, states)
    assert rows == [PROBE_ROWS] * 4
