"""Local deep supervision: every refiner learns the label by its own cross-entropy, without a teacher.

Greedy learning with auxiliary losses (Belilovsky et al. 2019), where a refiner's logits are its auxiliary head. SID
with alpha = 1 and the forward direction has the same gradients.
"""

from torch import Tensor

from sidpar.cascade.cascade import TensorTuple
from sidpar.rules.base import LocalRule
from sidpar.rules.kl import kl_to


class DeepSupervision(LocalRule):
    """KL from the smoothed label, which differs from the cross-entropy by a constant."""

    name = "deep_supervision"
    loss_reads_features = False

    def loss(self, i: int, features: TensorTuple, state: TensorTuple, following: TensorTuple, target: Tensor) -> Tensor:
        return kl_to(following[0], target, "forward")
