"""What refiners learn from: the rule, and its settings. No torch; the rules themselves are in `sidpar/rules`."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

from sidpar.config.groups.choices import KL, ExtractorUpdate, Option
from sidpar.config.groups.refusals import Refusal, not_among, outside, refuse
from sidpar.errors import UsageError


def _check_support(objective: Any) -> None:
    if objective.kl == "reverse" and objective.label_smoothing == 0:
        raise UsageError(
            "objective.kl=reverse takes the logarithm of the target, which is -inf for a one-hot label: "
            "set objective.label_smoothing > 0 (say 0.1), or use objective.kl=forward"
        )


@dataclass(frozen=True)
class Objective:
    """What refiners learn from: a rule and its settings. A setting that the rule does not read is refused.

    Raises:
        UsageError: a setting has a value that is not offered.
    """

    alpha: float | Sequence[float] = 0.5
    """Weight of the label against the belief of the refiner before, in (0, 1]: one number, or a list with one per
    refiner."""
    kl: KL = "forward"
    """Direction of both KL terms: forward, as in the authors' code, or reverse, as in the paper."""
    label_smoothing: float = 0.0
    """s in [0, 1): the target is (1 - s) one_hot(y) + s / C; kl=reverse needs s > 0."""
    extractor_update: ExtractorUpdate = "all"
    """Which refiners' losses train the extractor: all, the final one's only, or none (frozen)."""
    rule: str = "sid"
    """sid: learn from the label and the belief of the refiner before (alpha, kl); deep_supervision: from the label
    only; label_denoising: from the label only, given a noisy label in place of that belief, so that refiners do not
    wait for each other."""
    options: dict[str, Option] | None = None
    """More settings of the rule: label_denoising has signal and noise, the others have none."""

    UNITS = MappingProxyType(dict.fromkeys(("alpha", "label_smoothing"), "none"))
    REFUSALS = (
        *outside("(0, 1]", "objective.alpha"),
        not_among(get_args(KL), "objective.kl"),
        not_among(get_args(ExtractorUpdate), "objective.extractor_update"),
        *outside("[0, 1)", "objective.label_smoothing"),
        Refusal(("objective.kl",), "reverse, with objective.label_smoothing=0", _check_support),
    )

    def __post_init__(self) -> None:
        refuse(self, self.REFUSALS)

    def alphas(self, num_refiners: int) -> list[float]:
        """alpha of every refiner, in cascade order.

        Raises:
            UsageError: alpha is a list of another length.
        """
        if isinstance(self.alpha, int | float):
            return [float(self.alpha)] * num_refiners
        if len(self.alpha) != num_refiners:
            raise UsageError(
                f"objective.alpha lists {len(self.alpha)} numbers, but the cascade has {num_refiners} refiners: "
                f"give {num_refiners}, or one number for all"
            )
        return [float(alpha) for alpha in self.alpha]

    def alpha_of(self, refiner: int) -> float:
        """alpha of one refiner, counted from 0."""
        return float(self.alpha if isinstance(self.alpha, int | float) else self.alpha[refiner])

    def trains_extractor_through(self, refiner: int, num_refiners: int) -> bool:
        """Whether this refiner's loss (counted from 0) sends a gradient to the features."""
        if self.extractor_update == "final":
            return refiner == num_refiners - 1
        return self.extractor_update == "all"
