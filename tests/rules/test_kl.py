"""The local loss against its formulas, autograd's own check, and its limits."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sidpar.cascade.cascade import refine
from sidpar.config.groups.choices import KL
from sidpar.config.groups.objective import Objective
from sidpar.rules.kl import kl_to, kl_to_log, local_loss, target_of

CASES = list(product(("forward", "reverse"), (0.2, 0.7, 1.0), (0.05, 0.3)))


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("kl", "alpha", "smoothing"), CASES)
def test_logit_gradient_is_the_formula(kl: KL, alpha: float, smoothing: float) -> None:
    """Section 3, last column of the table: independent of how the loss is computed."""
    z, teacher, y = logits(6, 5).requires_grad_(), logits(6, 5).log_softmax(-1), torch.tensor([0, 1, 2, 3, 4, 0])
    objective = Objective(alpha, kl, smoothing)
    target = target_of(objective, y, 5, torch.float64)
    local_loss(objective, alpha, z.log_softmax(-1), teacher, target).sum().backward()
    p = z.detach().softmax(-1)
    if kl == "forward":
        expected = p - alpha * target - (1 - alpha) * teacher.exp()
    else:
        s = p.log() - alpha * target.log() - (1 - alpha) * teacher
        expected = p * (s - (p * s).sum(-1, keepdim=True))
    assert z.grad is not None
    assert torch.allclose(z.grad, expected, atol=1e-12)


@pytest.mark.parametrize(("kl", "alpha", "smoothing"), CASES)
def test_gradcheck(kl: KL, alpha: float, smoothing: float) -> None:
    teacher, y = logits(3, 4).log_softmax(-1), torch.tensor([0, 1, 3])
    objective = Objective(alpha, kl, smoothing)
    target = target_of(objective, y, 4, torch.float64)
    z = logits(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: local_loss(objective, alpha, z.log_softmax(-1), teacher, target).mean(), [z]
    )


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_kl_is_its_definition(kl: KL) -> None:
    log_p, log_q = logits(4, 5).log_softmax(-1), logits(4, 5).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    expected = (q * (log_q - log_p)).sum(-1) if kl == "forward" else (p * (log_p - log_q)).sum(-1)
    assert torch.allclose(kl_to_log(log_p, log_q, kl), expected)
    assert torch.allclose(kl_to(log_p, q, kl), expected)
    assert torch.allclose(kl_to_log(log_p, log_p, kl), torch.zeros(4, dtype=torch.float64), atol=1e-14)


def test_alpha_one_is_cross_entropy() -> None:
    z, y = logits(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    objective = Objective(1.0)
    loss = local_loss(objective, 1.0, z.log_softmax(-1), logits(6, 5).log_softmax(-1), target_of(objective, y, 5))
    assert torch.allclose(loss, F.cross_entropy(z, y, reduction="none"))


def test_target_is_smoothed_as_in_torch() -> None:
    z, y = logits(3, 5), torch.tensor([0, 1, 2])
    target = target_of(Objective(label_smoothing=0.1), y, 5, torch.float64)
    assert torch.allclose(
        -(target * z.log_softmax(-1)).sum(-1), F.cross_entropy(z, y, reduction="none", label_smoothing=0.1)
    )


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_loss_survives_beliefs_that_underflow(kl: KL) -> None:
    """A probability of e^-200 is 0 in fp32, and its logarithm -inf; in log space nothing happens."""
    z = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 0.0, 200.0]]).log_softmax(-1)
    objective = Objective(0.5, kl, 0.1)
    loss = local_loss(objective, 0.5, z.log_softmax(-1), teacher, target_of(objective, torch.tensor([1]), 3))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_loss_is_fp32_under_autocast() -> None:
    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, features: Tensor, state: Tensor) -> Tensor:
            out: Tensor = self.linear(features)
            assert out.dtype == torch.bfloat16
            return out

    with torch.autocast("cpu", torch.bfloat16):
        (log_p,) = refine(Head(), (torch.randn(2, 4),), (torch.zeros(2, 3),))
        objective = Objective()
        loss = local_loss(objective, 0.5, log_p, log_p.detach(), target_of(objective, torch.tensor([0, 1]), 3))
    assert log_p.dtype == loss.dtype == torch.float32
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(2))
