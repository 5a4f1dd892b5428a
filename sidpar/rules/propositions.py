"""The paper's propositions as functions, and the quantities in them that can be observed in training.

Beliefs are log-probabilities [..., C], targets p_y are probabilities [..., C]. KL[p, q] follows the direction `kl`;
Propositions 2 and 4 use only KL >= 0 and KL[p, p] = 0, so they hold in both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sidpar.config.groups.choices import KL
from sidpar.config.groups.objective import Objective
from sidpar.rules.kl import column, kl_to, kl_to_log, target_of


def local_minimiser(log_teacher: Tensor, target: Tensor, alpha: float, kl: KL) -> Tensor:
    """Lemma 1: log of the belief that minimises l_i, given log p_{i-1} and p_y.

    reverse (the paper): p ~ p_{i-1}^(1-alpha) p_y^alpha. forward: p = (1-alpha) p_{i-1} + alpha p_y.
    """
    return ideal_belief(1, log_teacher, target, alpha, kl)


def ideal_belief(i: int, log_p0: Tensor, target: Tensor, alpha: float, kl: KL) -> Tensor:
    """Proposition 1: log p_i after i >= 0 refiners, each of which minimises its loss exactly.

    With w = (1-alpha)^i: reverse: p_i ~ p_0^w p_y^(1-w); forward: p_i = w p_0 + (1-w) p_y.
    """
    weight = (1 - alpha) ** i
    if kl == "reverse":
        return (weight * log_p0 + (1 - weight) * target.log()).log_softmax(-1)
    return (weight * log_p0.exp() + (1 - weight) * target).log()


class Descent(NamedTuple):
    """Proposition 2 for one refiner, per sample [...].

    excess: l_i(p_i) - l_i(p_{i-1}); the premise is excess <= 0.
    change: KL[p_i, p_y] - KL[p_{i-1}, p_y]; the conclusion is change <= -(1-alpha)/alpha * step.
    step:   KL[p_i, p_{i-1}].

    Since excess = alpha * change + (1-alpha) * step, premise and conclusion are one inequality up to the factor alpha.
    What can fail less often is the plain descent, change <= 0.
    """

    excess: Tensor
    change: Tensor
    step: Tensor


def descent(log_p: Tensor, log_teacher: Tensor, target: Tensor, alpha: float | Tensor, kl: KL) -> Descent:
    """The quantities of Proposition 2 for log p_i, log p_{i-1} and p_y."""
    change = kl_to(log_p, target, kl) - kl_to(log_teacher, target, kl)
    step = kl_to_log(log_p, log_teacher, kl)
    return Descent(alpha * change + (1 - alpha) * step, change, step)


def error_bound(initial: float, excess: Sequence[float], alphas: Sequence[float]) -> float:
    """Proposition 4: KL[p_L, p_y] <= KL[p_0, p_y] + sum_i eps_i / alpha_i, where eps_i = max(0, excess_i).

    Holds per sample, and for means over samples with the mean excess.
    """
    return initial + sum(max(0.0, value) / alpha for value, alpha in zip(excess, alphas, strict=True))


def initial_divergence(objective: Objective, num_classes: int) -> float:
    """KL[p_0, p_y]: the same for every label, since p_0 is uniform."""
    target = target_of(objective, torch.zeros(1, dtype=torch.int64), num_classes, torch.float64)
    log_p0 = torch.full_like(target, 1 / num_classes).log()
    return float(kl_to(log_p0, target, objective.kl))


def teacher_drift(log_teacher: Tensor, log_other: Tensor) -> Tensor:
    """||q - q'|| of each sample, [...]: how far a teacher belief is from one made with other parameters."""
    drift: Tensor = torch.linalg.vector_norm(log_teacher.exp() - log_other.exp(), dim=-1)
    return drift


def staleness_error(log_p: Tensor, log_teacher: Tensor, log_other: Tensor, alpha: float, kl: KL) -> Tensor:
    """Proposition 5 before the chain rule: how d l_i / d z_i changes, [..., C], when the teacher q is replaced by q'.

    Exact, since the teacher is a constant of the loss: forward: (1-alpha) (q - q'). reverse, with d = log q - log q':
    (1-alpha) p (d - sum_j p_j d_j). Its norm times that of the Jacobian d z_i / d theta_i bounds the error in the
    gradient of the parameters; in `forward` it is (1-alpha) times the `teacher_drift`.
    """
    if kl == "forward":
        return (1 - alpha) * (log_teacher.exp() - log_other.exp())
    p, difference = log_p.exp(), log_teacher - log_other
    return (1 - alpha) * p * (difference - (p * difference).sum(-1, keepdim=True))


MEASURES = ("loss", "kl", "correct", "premise_failures", "descent_failures", "excess")
"""What `measure` sums over samples: l_i, KL[p_i, p_y], correct predictions, samples on which Proposition 2's premise
(equally its conclusion) fails, samples whose KL to the target rises, and l_i(p_i) - l_i(p_{i-1})."""


@torch.no_grad()
def measure(objective: Objective, alphas: Sequence[float], teachers: Tensor, beliefs: Tensor, y: Tensor) -> Tensor:
    """The MEASURES of n refiners in a row, summed over samples: [n, 6] in float64.

    Args:
        alphas: alpha_i of these n refiners.
        teachers: the log-belief that each of them received, [n, ..., C].
        beliefs: the log-belief that each of them returned, [n, ..., C].
        y: labels [...].
    """
    target = target_of(objective, y, beliefs.shape[-1], beliefs.dtype).expand_as(beliefs)
    alpha = column(alphas, beliefs)
    to_target = kl_to(beliefs, target, objective.kl)
    excess, change, step = descent(beliefs, teachers, target, alpha, objective.kl)
    columns = (
        alpha * to_target + (1 - alpha) * step,
        to_target,
        beliefs.argmax(-1) == y,
        excess > 0,
        change > 0,
        excess,
    )
    return torch.stack([column.flatten(1).sum(1, dtype=torch.float64) for column in columns], dim=1)
