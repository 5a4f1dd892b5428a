"""The settings of the local losses."""

from typing import Any

import pytest

from sidpar.config.groups.objective import Objective


@pytest.mark.parametrize(
    ("update", "through"), [("all", [True] * 3), ("final", [False, False, True]), ("frozen", [False] * 3)]
)
def test_extractor_update_selects_refiners(update: Any, through: list[bool]) -> None:
    objective = Objective(extractor_update=update)
    assert [objective.trains_extractor_through(i, 3) for i in range(3)] == through


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, r"objective.alpha must lie in \(0, 1\], got 0.0"),
        ({"alpha": [0.5, 1.5]}, r"objective.alpha must lie in \(0, 1\]"),
        ({"kl": "sideways"}, "objective.kl must be one of"),
        ({"extractor_update": "some"}, "objective.extractor_update must be one of"),
        ({"label_smoothing": 1.0}, r"objective.label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"kl": "reverse"}, "-inf for a one-hot label: set objective.label_smoothing > 0"),
    ],
)
def test_messages(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**settings)  # type: ignore[arg-type]


def test_alpha_list_must_fit_the_cascade() -> None:
    assert Objective([0.1, 0.2]).alphas(2) == [0.1, 0.2]
    with pytest.raises(ValueError, match="objective.alpha lists 2 numbers, but the cascade has 3 refiners"):
        Objective([0.1, 0.2]).alphas(3)
