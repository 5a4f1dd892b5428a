"""All pictures fit a paper's column with text that can be read, and can be told apart without colours."""

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from sidpar.planner.search import make_plan
from sidpar.plots import beliefs, plan
from sidpar.plots.comparison import draw_comparison
from sidpar.plots.curves import draw_curves, draw_depth, shades
from sidpar.plots.style import ACTIONS, MEMORY, METHODS, SEQUENCES, SETTINGS, TEXT, WIDTH, Fill, family, series
from tests.planner.test_search import job
from tests.plots.test_comparison import run


def grey(colour: Any) -> float:
    """What a printer without colours makes of it: 0 black, 255 white."""
    return float(255 * np.dot(to_rgb(colour), [0.299, 0.587, 0.114]))


def differ(one: Fill, other: Fill) -> bool:
    """In grey."""
    return one.hatch != other.hatch or abs(grey(one.colour) - grey(other.colour)) > 15


@pytest.mark.parametrize(
    "phases",
    [
        [
            *("extractor forward", "refiner forward", "refiner backward", "extractor backward"),
            *("feature reduction", "parameter reduction", "receive wait", "optimizer"),
        ],
        ["forward", "backward", "send", "receive wait", "optimizer"],
        ["forward", "input backward", "weight backward", "send", "receive wait", "optimizer"],
    ],
    ids=["sid", "pipeline", "zero bubble"],
)
def test_actions_of_one_timeline_differ_in_grey(phases: list[str]) -> None:
    same = [pair for pair in combinations(phases, 2) if not differ(*(ACTIONS[phase] for phase in pair))]
    assert set(same) <= {("feature reduction", "parameter reduction")}, "both are sums"


def test_neighbours_in_a_bar_of_memory_differ_in_grey() -> None:
    assert all(differ(*pair) for pair in pairwise(MEMORY))


def test_lines_differ_without_colours() -> None:
    assert len({look.marker for look in METHODS.values()}) == len(METHODS)
    looks = [series(k) for k in range(50)]
    assert len(set(looks)) == 50
    assert len({(look.marker, look.line) for look in looks[:36]}) == 36


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_have_an_order_in_grey(name: str) -> None:
    levels = [grey(colour[:3]) for colour in shades(name, 12)]
    assert levels in (sorted(levels), sorted(levels, reverse=True))
    assert max(levels) < 225, "to be seen on white"


def test_families() -> None:
    """Of rows of reports, of candidates of plans, of configurations."""
    found = [
        family(*pair)
        for pair in [
            ("sid", "streaming"),
            ("sid", "fused"),
            ("sid", "two_phase"),
            ("bp", "1f1b"),
            ("ddp", "ddp, checkpointing"),
            ("sid", "one process"),
            ("bp", "one device, checkpointing"),
            ("local", None),
        ]
    ]
    assert found == [*METHODS, "one process", "one process"]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What would be written to files."""
    figures: list[Figure] = []
    for module in (plan, beliefs):
        monkeypatch.setattr(module, "save_picture", lambda figure, _: figures.append(figure))
    return figures


def plan_picture(figures: list[Figure]) -> Figure:
    given = job(2, 4)
    plan.draw_plan(given, make_plan(given), {"job": "a network " * 20}, Path("plan.png"))
    return figures[-1]


def belief_picture(figures: list[Figure]) -> Figure:
    prediction = beliefs.Prediction("an image", torch.rand(1, 8, 8), torch.full((5, 10), 0.1))
    beliefs.draw_predictions([prediction] * 3, list("abcdefghij"), Path("a.png"), top=5, caption="a caption")
    return figures[-1]


PICTURES: dict[str, Callable[[list[Figure]], Figure]] = {
    "curves": lambda _: draw_curves(run("a")),
    "depth": lambda _: draw_depth(run("a"), 10),
    "comparison": lambda _: draw_comparison([run("a"), run("b")], [10, 10]),
    "plan": plan_picture,
    "beliefs": belief_picture,
}


def check_fits_a_column(figure: Figure) -> None:
    """No wider than the column, no text below the least size, nothing that sticks out."""
    assert figure.get_figwidth() <= WIDTH
    small = {text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_fontsize() < TEXT}
    assert not small
    figure.draw_without_rendering()  # which lays it out
    box = figure.get_tightbbox()
    assert box is not None
    assert box.x0 > -0.05
    assert box.x1 < WIDTH + 0.05


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_fits_a_column(name: str, saved: list[Figure]) -> None:
    before = {key: mpl.rcParams[key] for key in SETTINGS}
    check_fits_a_column(PICTURES[name](saved))
    assert {key: mpl.rcParams[key] for key in SETTINGS} == before, "the settings of matplotlib are the caller's"
