"""The local loss of a refiner (DESIGN section 3), in log space.

    l_i = alpha_i * KL[p_i, p_y] + (1 - alpha_i) * KL[p_i, sg(p_{i-1})],   averaged over the global batch

with KL[p, q] = sum_c p log(p/q) for `reverse` (the paper, Lemma 1) and sum_c q log(q/p) for `forward` (the authors'
released code). Distributions are [..., C]; every function here works on log p and never takes the logarithm of a
probability, which may have underflowed to 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from sidpar.schedule import ExtractorUpdate

KL = Literal["forward", "reverse"]


def kl_to(log_p: Tensor, q: Tensor, kl: KL) -> Tensor:
    """KL[p, q] of each sample, [...], for log p and a target q (probabilities), both [..., C].

    `forward` allows zeros in q (0 log 0 = 0); `reverse` takes log q, which is finite for smoothed targets.
    """
    if kl == "forward":
        return F.kl_div(log_p, q, reduction="none").sum(-1)
    return kl_to_log(log_p, q.log(), kl)


def kl_to_log(log_p: Tensor, log_q: Tensor, kl: KL) -> Tensor:
    """KL[p, q] of each sample, [...], from two log-beliefs [..., C]."""
    if kl == "forward":
        return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


@dataclass(frozen=True)
class Objective:
    """Everything a local loss depends on besides the beliefs.

    Args:
        alpha: weight of the target term, one number for all refiners or one per refiner, each in (0, 1].
        kl: direction of both KL terms.
        label_smoothing: s in [0, 1); the target is (1 - s) one_hot(y) + s / C. `reverse` needs s > 0.
        extractor_update: which refiners' feature gradients train the extractor: all, final (only refiner L), frozen.
    """

    alpha: float | Sequence[float] = 0.5
    kl: KL = "forward"
    label_smoothing: float = 0.0
    extractor_update: ExtractorUpdate = "all"

    def __post_init__(self) -> None:
        for alpha in [self.alpha] if isinstance(self.alpha, int | float) else self.alpha:
            if not 0 < alpha <= 1:
                raise ValueError(f"objective.alpha must lie in (0, 1], got {self.alpha}")
        if self.kl not in get_args(KL):
            raise ValueError(f"objective.kl must be one of {get_args(KL)}, got {self.kl!r}")
        if self.extractor_update not in get_args(ExtractorUpdate):
            raise ValueError(
                f"objective.extractor_update must be one of {get_args(ExtractorUpdate)}, got {self.extractor_update!r}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"objective.label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.kl == "reverse" and self.label_smoothing == 0:
            raise ValueError(
                "objective.kl=reverse takes the logarithm of the target, which is -inf for a one-hot label: "
                "set objective.label_smoothing > 0 (say 0.1), or use objective.kl=forward"
            )

    def alphas(self, num_refiners: int) -> list[float]:
        """alpha_i of every refiner."""
        if isinstance(self.alpha, int | float):
            return [float(self.alpha)] * num_refiners
        if len(self.alpha) != num_refiners:
            raise ValueError(
                f"objective.alpha lists {len(self.alpha)} numbers, but the cascade has {num_refiners} refiners: "
                f"give {num_refiners}, or one number for all"
            )
        return [float(alpha) for alpha in self.alpha]

    def trains_extractor_through(self, refiner: int, num_refiners: int) -> bool:
        """Whether refiner's loss sends a gradient to the features."""
        if self.extractor_update == "final":
            return refiner == num_refiners - 1
        return self.extractor_update == "all"

    def target(self, y: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """p_y: labels [...] to distributions [..., C]."""
        one_hot = F.one_hot(y, num_classes).to(dtype)
        return one_hot * (1 - self.label_smoothing) + self.label_smoothing / num_classes

    def local_loss(self, alpha: float, log_p: Tensor, log_teacher: Tensor, target: Tensor) -> Tensor:
        """l_i of each sample, [...]: log p_i and the constant log p_{i-1}, target p_y, all [..., C]."""
        to_target = kl_to(log_p, target, self.kl)
        if alpha == 1:
            return to_target
        return alpha * to_target + (1 - alpha) * kl_to_log(log_p, log_teacher.detach(), self.kl)
