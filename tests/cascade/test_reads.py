"""Which features refiners read, and what happens to one that reads what has not been sent."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidpar import UsageError
from sidpar.cascade.cascade import Cascade
from sidpar.cascade.reads import Absent, rows_of
from sidpar.cascade.specs import Skeleton


class Refiner(nn.Module):
    """Calls a function with its two features; what that returns is added to the logits, or nothing."""

    def __init__(self, use: Callable[["Refiner", Tensor, Tensor], Tensor | None]) -> None:
        super().__init__()
        self.use = use
        self.head = nn.Linear(3, 3)

    def forward(self, features: tuple[Tensor, Tensor], log_belief: Tensor) -> Tensor:
        added = self.use(self, *features)
        logits: Tensor = self.head(log_belief.exp())
        return logits if added is None else logits + added


class Extractor(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :3], x[:, 3:]


def in_place(refiner: Refiner, one: Tensor, other: Tensor) -> None:
    one.add_(1.0)


def keep(refiner: Refiner, one: Tensor, other: Tensor) -> None:
    refiner.kept = {"last": other}  # type: ignore[assignment]


def only_when_evaluated(refiner: Refiner, one: Tensor, other: Tensor) -> Tensor | None:
    return None if refiner.training else other


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda refiner, one, other: one, [True, False]),
        (lambda refiner, one, other: torch.relu(other), [False, True]),
        (lambda refiner, one, other: one * other.mean(), [True, True]),
        (lambda refiner, one, other: None, [False, False]),
        (lambda refiner, one, other: one.new_zeros(len(other), other.shape[1]), [False, False]),
        (lambda refiner, one, other: torch.zeros_like(one), [False, False]),
        (in_place, [True, False]),
        (only_when_evaluated, [False, True]),
        (keep, [False, True]),
    ],
)
def test_what_is_read(use: Any, expected: list[bool]) -> None:
    cascade = Cascade(Extractor(), [Refiner(lambda refiner, one, other: None), Refiner(use)], 3)
    modes = [module.training for module in cascade.modules()]
    found = Skeleton(cascade).reads(torch.zeros(4, 6))
    assert found is not None
    assert [1 in refiners for refiners in found] == expected
    assert not any(0 in refiners for refiners in found)
    assert [module.training for module in cascade.modules()] == modes


def test_what_a_transform_hides_is_not_known() -> None:
    """torch.func wraps tensors, and reads them unseen: then every refiner may read all."""
    used = Refiner(lambda refiner, one, other: torch.vmap(lambda row: 2 * row)(other))
    assert Skeleton(Cascade(Extractor(), [used], 3)).reads(torch.zeros(4, 6)) is None


class Handed(nn.Module):
    """Hands a feature on as its hidden state."""

    def forward(self, features: tuple[Tensor, Tensor], state: Any) -> tuple[Tensor, Tensor]:
        return state[0] if isinstance(state, tuple) else state, features[1]


def test_what_is_handed_on_is_read() -> None:
    assert Skeleton(Cascade(Extractor(), [Handed()], 3)).reads(torch.zeros(4, 6)) == (frozenset(), frozenset({0}))


def test_a_feature_that_was_not_sent_has_a_shape_and_no_numbers() -> None:
    absent = Absent.like((4, 3), torch.float64, torch.device("cpu"))
    assert (absent.shape, absent.dtype, len(absent), absent.dim()) == ((4, 3), torch.float64, 4, 2)
    assert rows_of(absent, slice(1, 3)).shape == (2, 3)
    assert repr(absent) == "Absent([4, 3], torch.float64)"
    for read in (lambda: absent + 1, lambda: absent.sum(), lambda: torch.cat([absent]), absent.tolist, absent.numpy):
        with pytest.raises(UsageError, match="reads a feature that none of them read when the shapes were inferred"):
            read()
