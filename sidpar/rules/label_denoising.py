"""Refiners that learn without a chain: each is given a noisy label, and learns to predict the label from it.

The idea of NoProp (Li, Teh and Pascanu 2025, arXiv 2503.24322), on beliefs in place of label embeddings: refiner i of
L receives softmax(s_i (p_y + sigma e)) with e standard normal, whose signal s_i = signal * i / L rises along the
cascade, from the uniform belief that the first one receives in inference too. So no refiner waits for another one in
training. Inference is the plain chain: each refiner receives what the one before has made of it.
"""

from torch import Tensor

from sidpar.cascade.cascade import TensorTuple
from sidpar.cascade.specs import CascadeSpecs
from sidpar.config.groups.checks import at_least
from sidpar.config.groups.objective import Objective
from sidpar.errors import UsageError
from sidpar.rules.base import LocalRule, Rows
from sidpar.rules.kl import kl_to


class LabelDenoising(LocalRule):
    """Cross-entropy of each refiner to the label, from a belief made of the label and noise.

    Args:
        signal: by how much the label's logit exceeds those of the other classes for the last refiner, without noise.
        noise: sigma, relative to that.
    """

    name = "label_denoising"
    loss_reads_features = False
    passes_states = False

    def __init__(self, objective: Objective, *, signal: float = 4.0, noise: float = 1.0) -> None:
        super().__init__(objective)
        at_least("objective.options.signal", signal, 0)
        at_least("objective.options.noise", noise, 0)
        self._signal, self._noise = signal, noise

    def check_states(self, specs: CascadeSpecs) -> None:
        for i, state in enumerate(specs.states[:-1]):
            if len(state) > 1:
                raise UsageError(
                    f"objective.rule={self.name} makes the belief that a refiner receives from the label, but cannot "
                    f"make the {len(state) - 1} hidden activations that refiner {i} receives too: use a cascade "
                    "whose refiners return a belief only, or another rule"
                )

    def made_state(self, i: int, num_refiners: int, features: TensorTuple, target: Tensor, rows: Rows) -> TensorTuple:
        noise = rows.normal("label", i, target[0].numel(), target).view_as(target)
        logits = self._signal * i / num_refiners * (target + self._noise * noise)
        return (logits.log_softmax(-1),)

    def loss(self, i: int, features: TensorTuple, state: TensorTuple, following: TensorTuple, target: Tensor) -> Tensor:
        return kl_to(following[0], target, "forward")
