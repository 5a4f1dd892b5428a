"""Divergences between beliefs in log space, and the local loss of SID made of them.

    l_i = alpha_i * KL[p_i, p_y] + (1 - alpha_i) * KL[p_i, sg(p_{i-1})],   averaged over the global batch

with KL[p, q] = sum_c p log(p/q) for `reverse` (the paper, Lemma 1) and sum_c q log(q/p) for `forward` (the authors'
released code). Formulas count refiners from 1, as the paper does: p_i is what refiner i-1 of the code returns.

Beliefs are log-probabilities [..., C] and targets are probabilities [..., C]. Nothing here takes the logarithm of a
belief's probabilities, which may have underflowed to 0.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sidpar.config.groups.choices import KL
from sidpar.config.groups.objective import Objective


def kl_to(log_p: Tensor, q: Tensor, kl: KL) -> Tensor:
    """KL[p, q] of each sample, [...], for log p and a target q (probabilities).

    `forward` allows zeros in q (0 log 0 = 0); `reverse` takes log q, which is finite for smoothed targets.
    """
    if kl == "forward":
        return F.kl_div(log_p, q, reduction="none").sum(-1)
    return kl_to_log(log_p, q.log(), kl)


def kl_to_log(log_p: Tensor, log_q: Tensor, kl: KL) -> Tensor:
    """KL[p, q] of each sample, [...], from two log-beliefs."""
    if kl == "forward":
        return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def target_of(objective: Objective, y: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """p_y: labels [...] to probabilities [..., C]."""
    one_hot = F.one_hot(y, num_classes).to(dtype)
    return one_hot * (1 - objective.label_smoothing) + objective.label_smoothing / num_classes


def local_loss(objective: Objective, alpha: float, log_p: Tensor, log_teacher: Tensor, target: Tensor) -> Tensor:
    """l_i of each sample, [...]: log p_i, the constant log p_{i-1}, and the target p_y, all [..., C]."""
    to_target = kl_to(log_p, target, objective.kl)
    if alpha == 1:
        return to_target
    return alpha * to_target + (1 - alpha) * kl_to_log(log_p, log_teacher.detach(), objective.kl)


def local_losses(
    objective: Objective, alphas: Sequence[float], log_p: Tensor, log_teachers: Tensor, target: Tensor
) -> Tensor:
    """l_i of each sample for n refiners at once, [n, ...]: log p_i and log p_{i-1} are [n, ..., C], one alpha_i and one
    row for each refiner; the target p_y is [..., C]."""
    if len(set(alphas)) == 1:
        return local_loss(objective, alphas[0], log_p, log_teachers, target)
    weights = column(alphas, log_p)
    to_target = kl_to(log_p, target, objective.kl)
    return weights * to_target + (1 - weights) * kl_to_log(log_p, log_teachers.detach(), objective.kl)


def column(alphas: Sequence[float], log_p: Tensor) -> Tensor:
    """One alpha per refiner, to be multiplied with [n, ...] where log p is [n, ..., C]."""
    return _column(tuple(alphas), log_p.dim() - 1, log_p.dtype, log_p.device)


@lru_cache(maxsize=64)
def _column(alphas: tuple[float, ...], dimensions: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, since copying a list of numbers to a GPU makes the host wait."""
    return torch.tensor(alphas, dtype=dtype, device=device).view(-1, *[1] * (dimensions - 1))
