"""The pictures of a report: they show something, fit a column, and have the colours of all other pictures."""

from pathlib import Path

import pytest
from matplotlib import image
from matplotlib.figure import Figure
from report import remake
from reporting.draw import PIPELINES
from reporting.figures import look_of, name_of
from reporting.gantt import select

from sidpar.plots.pictures import PictureFormat
from tests.plots.test_style import check_fits_a_column
from tests.profiling.test_report import folder, row, synthetic, synthetic_timelines, write

__all__ = ["folder"]  # a fixture


@pytest.mark.parametrize("name", ["speedup", "memory", "timeline", "overview"])
def test_pictures_show_something(folder: Path, name: str) -> None:
    """Cut into bands: the drawing has colours, and the caption's band at the bottom has text."""
    picture = (255 * image.imread(folder / f"{name}.png")[..., :3]).astype(int)
    height, width, _ = picture.shape
    assert height > 300
    assert width > 1000
    colours = [
        {tuple(colour) for colour in picture[height * band // 4 : height * (band + 1) // 4 : 2, ::2].reshape(-1, 3)}
        for band in range(4)
    ]
    assert all(len(found) > 8 for found in colours), [len(found) for found in colours]
    vivid = {colour for found in colours for colour in found if max(colour) - min(colour) > 60}
    assert len(vivid) >= 4
    border = [picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]]
    assert all((edge == 255).all() for edge in border), "something is clipped at the picture's edge"


def test_pictures_fit_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of runs do."""
    figures: list[Figure] = []
    for module in ("draw", "gantt"):
        monkeypatch.setattr(f"reporting.{module}.save_picture", lambda figure, _: figures.append(figure))
    remake(write(tmp_path, synthetic(), synthetic_timelines()))
    assert len(figures) == 4
    for found in figures:
        check_fits_a_column(found)


@pytest.mark.parametrize(("kind", "beginning"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_vector_graphics(kind: PictureFormat, beginning: bytes, tmp_path: Path) -> None:
    remake(write(tmp_path, synthetic(), synthetic_timelines()), kind)
    found = {path.stem: path.read_bytes() for path in tmp_path.glob(f"*.{kind}")}
    assert found.keys() == {"speedup", "memory", "timeline", "overview"}
    assert all(content.startswith(beginning) for content in found.values())
    assert not list(tmp_path.glob("*.png"))


def test_a_method_has_its_colour_and_each_schedule_its_marker() -> None:
    pairs = [("sid", "fused", "sharded"), ("bp", "1f1b", "cut"), ("bp", "zbv", "cut"), ("sid", "unheard of", "root")]
    looks = [look_of(row(*names, 1, 2.0)) for names in pairs]
    assert [look.colour for look in looks] == ["#E69F00", "#0072B2", "#0072B2", "#56B4E9"]
    assert len({*PIPELINES.values()}) == len(PIPELINES)
    assert [name_of(row(*names, 1, 2.0)) for names in (*pairs[:2], ("ddp", "ddp", "whole"))] == [
        *("SID fused, sharded", "BP 1f1b, cut", "DDP")
    ]


def test_select_takes_the_fastest_of_each_kind_at_the_middle_m() -> None:
    rows = [
        row("sid", "fused", "sharded", 1, 30.0),
        row("sid", "fused", "sharded", 8, 20.0),
        row("sid", "fused", "sharded", 32, 10.0),
        row("sid", "fused", "root", 8, 5.0),
        row("sid", "fused", "replicated", 32, 9.0),
        row("sid", "two_phase", "sharded", 8, 21.0),
        row("sid", "streaming", "root", 8, 4.0),
        row("sid", "streaming", "replicated", 8, None),
        row("sid", "streaming", "replicated", 32, 11.0),
        row("sid", "streaming", "sharded", 8, 22.0),
        row("bp", "naive", "cut", 1, 50.0),
        row("bp", "gpipe", "cut", 8, 26.0),
        row("bp", "1f1b", "cut", 8, 25.0),
        row("bp", "dualpipe_v", "cut", 8, 24.0),
        row("bp", "zbv", "cut", 8, 23.0),
    ]
    assert select(rows) == [
        "bp naive cut M=1",
        "bp 1f1b cut M=8",
        "bp zbv cut M=8",
        "sid fused sharded M=8",
        "sid streaming sharded M=8",
        "sid streaming replicated M=8",
    ]
    assert select([]) == []
