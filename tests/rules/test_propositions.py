"""The propositions hold for any beliefs: property-based, in float64."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sidpar.config.groups.choices import KL
from sidpar.config.groups.objective import Objective
from sidpar.rules.kl import kl_to, local_loss, target_of
from sidpar.rules.propositions import (
    MEASURES,
    descent,
    error_bound,
    ideal_belief,
    initial_divergence,
    local_minimiser,
    measure,
    staleness_error,
    teacher_drift,
)

DIRECTIONS = st.sampled_from(("forward", "reverse"))
ALPHAS = st.floats(0.05, 0.95)


@st.composite
def beliefs(draw: st.DrawFn, classes: int = 4) -> Tensor:
    """A log-belief with full support."""
    logits = draw(st.lists(st.floats(-6, 6), min_size=classes, max_size=classes))
    return torch.tensor(logits, dtype=torch.float64).log_softmax(-1)


@given(beliefs(), beliefs(), beliefs(), ALPHAS, DIRECTIONS)
def test_lemma_1_no_other_belief_has_a_lower_loss(
    log_teacher: Tensor, log_target: Tensor, other: Tensor, alpha: float, kl: KL
) -> None:
    target, objective = log_target.exp(), Objective(alpha, kl, 0.1)
    best = local_minimiser(log_teacher, target, alpha, kl)
    assert best.exp().sum().item() == pytest.approx(1.0)
    least = local_loss(objective, alpha, best, log_teacher, target)
    assert least <= local_loss(objective, alpha, other, log_teacher, target) + 1e-12


@given(beliefs(), ALPHAS, DIRECTIONS, st.integers(0, 12))
def test_proposition_1_is_the_lemma_repeated(log_target: Tensor, alpha: float, kl: KL, depth: int) -> None:
    target = log_target.exp()
    log_p0 = torch.zeros(4, dtype=torch.float64).log_softmax(-1)
    log_p = log_p0
    for _ in range(depth):
        log_p = local_minimiser(log_p, target, alpha, kl)
    assert torch.allclose(log_p, ideal_belief(depth, log_p0, target, alpha, kl), atol=1e-9)


@given(beliefs(), DIRECTIONS)
def test_proposition_1_converges_geometrically(log_target: Tensor, kl: KL) -> None:
    target = log_target.exp()
    log_p0 = torch.zeros(4, dtype=torch.float64).log_softmax(-1)
    divergences = [kl_to(ideal_belief(i, log_p0, target, 0.5, kl), target, kl).item() for i in range(8)]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(divergences))
    assert divergences[-1] <= 0.5**7 * divergences[0] + 1e-12


def test_proposition_1_forward_reaches_a_one_hot_target() -> None:
    """The arithmetic mixture needs no smoothing: 1 - p_i[y] = (1 - alpha)^i (1 - 1/C)."""
    one_hot = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    log_p0 = torch.full((4,), 0.25, dtype=torch.float64).log()
    assert ideal_belief(3, log_p0, one_hot, 0.5, "forward").exp()[1].item() == pytest.approx(1 - 0.125 * 0.75)


@given(beliefs(), beliefs(), beliefs(), ALPHAS, DIRECTIONS)
def test_proposition_2(log_p: Tensor, log_teacher: Tensor, log_target: Tensor, alpha: float, kl: KL) -> None:
    """The premise implies the bound and the descent; `excess` is the difference of the losses themselves."""
    target, objective = log_target.exp(), Objective(alpha, kl, 0.1)
    excess, change, step = descent(log_p, log_teacher, target, alpha, kl)
    losses = [local_loss(objective, alpha, belief, log_teacher, target) for belief in (log_p, log_teacher)]
    assert excess.item() == pytest.approx((losses[0] - losses[1]).item(), abs=1e-10)
    if excess <= 0:
        assert change <= -(1 - alpha) / alpha * step + 1e-10
        assert change <= 1e-10


@given(st.lists(beliefs(), min_size=2, max_size=6), beliefs(), ALPHAS, DIRECTIONS)
def test_proposition_2_telescopes_and_proposition_4(
    chain: list[Tensor], log_target: Tensor, alpha: float, kl: KL
) -> None:
    """For any chain of beliefs whatever, with eps_i = max(0, excess_i)."""
    target = log_target.exp()
    steps = [descent(p, q, target, alpha, kl) for q, p in itertools.pairwise(chain)]
    first, last = (kl_to(belief, target, kl).item() for belief in (chain[0], chain[-1]))
    errors = [max(0.0, step.excess.item()) for step in steps]
    consistency = sum(step.step.item() for step in steps)
    assert last <= first + sum(errors) / alpha - (1 - alpha) / alpha * consistency + 1e-9
    assert last <= error_bound(first, [step.excess.item() for step in steps], [alpha] * len(steps)) + 1e-9


def test_descent_sees_one_hot_targets() -> None:
    one_hot = torch.tensor([0.0, 1.0, 0.0])
    worse = descent(torch.tensor([0.6, 0.2, 0.2]).log(), torch.tensor([0.2, 0.6, 0.2]).log(), one_hot, 0.5, "forward")
    assert worse.excess > 0
    assert worse.change > 0


@pytest.mark.parametrize(("kl", "smoothing"), [("forward", 0.0), ("forward", 0.1), ("reverse", 0.1)])
def test_measure_against_a_loop(kl: KL, smoothing: float) -> None:
    """Each column, sample by sample and refiner by refiner."""
    objective, alphas = Objective([0.3, 0.6], kl, smoothing), [0.3, 0.6]
    log_beliefs = torch.randn(3, 5, 4, dtype=torch.float64).log_softmax(-1)
    y = torch.tensor([0, 1, 2, 3, 0])
    target = target_of(objective, y, 4, torch.float64)
    table = measure(objective, alphas, log_beliefs[:-1], log_beliefs[1:], y)
    for i, alpha in enumerate(alphas):
        before, after = log_beliefs[i], log_beliefs[i + 1]
        loss = local_loss(objective, alpha, after, before, target)
        excess = loss - local_loss(objective, alpha, before, before, target)
        change = kl_to(after, target, kl) - kl_to(before, target, kl)
        expected = [loss, kl_to(after, target, kl), after.argmax(-1) == y, excess > 0, change > 0, excess]
        for name, found, column in zip(MEASURES, table[i], expected, strict=True):
            assert found.item() == pytest.approx(column.sum().item(), abs=1e-10), name


def test_initial_divergence() -> None:
    assert initial_divergence(Objective(), 10) == pytest.approx(torch.tensor(10.0).log().item())
    reverse = Objective(kl="reverse", label_smoothing=0.1)
    log_p0 = torch.full((1, 10), 0.1, dtype=torch.float64).log()
    target = target_of(reverse, torch.tensor([3]), 10, torch.float64)
    assert initial_divergence(reverse, 10) == pytest.approx(kl_to(log_p0, target, "reverse").item())


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_proposition_5_in_the_logits(kl: KL) -> None:
    """The exact change of a logit gradient under another teacher, against autograd; in `forward`, its norm is
    (1 - alpha) times the drift of the teacher."""
    z, old, new = (torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(3))
    z.requires_grad_()
    log_old, log_new = old.log_softmax(-1), new.log_softmax(-1)
    objective = Objective(0.3, kl, 0.1)
    target = target_of(objective, torch.arange(6) % 4, 4, torch.float64)
    gradients = []
    for log_teacher in (log_old, log_new):
        loss = local_loss(objective, 0.3, z.log_softmax(-1), log_teacher, target).sum()
        gradients += torch.autograd.grad(loss, z)
    error = staleness_error(z.detach().log_softmax(-1), log_old, log_new, 0.3, kl)
    assert torch.allclose(gradients[1] - gradients[0], error, atol=1e-12)
    if kl == "forward":
        assert torch.allclose(error.norm(dim=-1), 0.7 * teacher_drift(log_old, log_new))


def test_proposition_5_in_the_parameters() -> None:
    """The error of the parameters' gradient is at most the norm of the Jacobian times that in the logits, and a step of
    the teacher's parameters ten times as small makes it ten times as small."""
    generator = torch.Generator().manual_seed(5)
    x, weight = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((8, 5), (4, 5)))
    weight.requires_grad_()
    teacher, step = (torch.randn(4, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    target = target_of(Objective(), torch.arange(8) % 4, 4, torch.float64)

    def gradient(teacher_weight: Tensor) -> Tensor:
        log_teacher = (x @ teacher_weight.T).log_softmax(-1)
        loss = local_loss(Objective(), 0.4, (x @ weight.T).log_softmax(-1), log_teacher, target).sum()
        return torch.autograd.grad(loss, weight)[0]

    errors = []
    for size in (1e-2, 1e-3):
        error = (gradient(teacher + size * step) - gradient(teacher)).norm()
        old, new = ((x @ w.T).log_softmax(-1) for w in (teacher, teacher + size * step))
        bound = torch.linalg.matrix_norm(x, 2) * (0.6 * teacher_drift(old, new)).norm()
        assert error <= bound
        errors.append(error.item())
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
