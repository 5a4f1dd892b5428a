"""The tables and figures that pages call are those of the committed results."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from macros import define_env, hooks
from macros.figures import FIGURES
from mkdocs.config.defaults import MkDocsConfig
from reporting.summaries import MEMORY, METHODS, STREAMS, memory_table, ratio_table, rows_of, speed_table, stream_table


def cells(table: str) -> dict[str, list[str]]:
    """The cells of each line by its first one."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(line) for line in lines}) == 1, "a line is of another length than the others"
    return {first: others for first, *others in lines}


@pytest.mark.parametrize(("name", "counts"), [("emulated_k4", [1, 4, 16]), ("emulated_k8", [1, 8, 32])])
def test_speed_table(name: str, counts: list[int]) -> None:
    found, rows = cells(speed_table(name)), rows_of(name)
    assert found[""] == [f"M = {count}" for count in counts]
    assert found.keys() - {"", "---"} == METHODS.keys()
    row = rows[f"sid streaming sharded M={counts[1]}"]
    assert found["SID `streaming`, sharded"][1] == f"{row['speedup_vs_naive_bp']:.2f} ({row['law_speedup']:.2f})"
    assert found["BP naive"] == ["1.00 (1.00)", "-", "-"]


def test_stream_table() -> None:
    found, row = cells(stream_table("emulated_k8")), rows_of("emulated_k8")["sid fused sharded M=8"]
    assert found.keys() - {"", "---"} == STREAMS.keys()
    assert found["SID `fused`, sharded"][2] == f"{row['model_step_ms'] / row['step_ms']['median']:.2f}"
    assert float(found["SID `streaming`, sharded"][3]) > float(found["BP 1F1B"][3])


@pytest.mark.parametrize(("name", "m", "unit", "ranks"), [("emulated_k4", 16, "KiB", 4), ("wide_mlp_k2", 8, "MiB", 2)])
def test_memory_table(name: str, m: int, unit: Any, ranks: int) -> None:
    found = cells(memory_table(name, m, unit))
    assert found.keys() - {"", "---"} == {label.format(m=m) for label in MEMORY}
    saved = rows_of(name)[f"bp 1f1b cut M={m}"]["saved_activation_bytes"]
    size = {"KiB": 2**10, "MiB": 2**20}[unit]
    assert len(saved) == ranks
    assert found[f"BP 1F1B, M = {m}"][0] == ", ".join(f"{each / size:.1f}" for each in saved)


@pytest.mark.parametrize("name", ["wide_mlp_k2", "simple_cnn_k2", "digits_k2"])
def test_ratio_table(name: str) -> None:
    """The fastest setting of SID that was tried has 1.00; of each kind there is one line, with its setting."""
    found = cells(ratio_table(name))
    assert len(found) == 2 + 7
    assert min(float(found[kind][2]) for kind in ("SID, streaming", "SID, synchronous")) == 1.0
    assert all(re.search(r", M = \d+$", line[0]) for kind, line in found.items() if kind not in ("", "---"))


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_a_value(name: str) -> None:
    """A number, perhaps with a unit, or a table of them."""
    assert re.search(r"\d", FIGURES[name]())


class Env:
    """What mkdocs-macros hands over, with the page that is being made."""

    def __init__(self, page: str) -> None:
        self.macros: dict[str, Any] = {}
        self.page = SimpleNamespace(file=SimpleNamespace(src_uri=page))

    def macro(self, function: Any) -> Any:
        self.macros[function.__name__] = function
        return function


@pytest.mark.parametrize(("page", "up"), [("index.md", ""), ("concepts/schedules.md", "../")])
def test_results_are_linked_from_where_the_page_is(page: str, up: str) -> None:
    env = Env(page)
    define_env(env)
    target = f"{up}profiling/results/emulated_k8/timeline.png"
    assert env.macros["result_picture"]("emulated_k8/timeline.png", "text") == f"[![text]({target})]({target})"


def test_results_that_a_page_names_are_linked() -> None:
    """A file, and a folder by its report; a folder without one is left as it is."""
    known = {"profiling/results/stacked_cpu.json", "profiling/results/emulated_k8/report.md"}
    files: Any = SimpleNamespace(get_file_from_path=lambda path: path in known)
    page: Any = SimpleNamespace(file=SimpleNamespace(src_uri="results/memory.md"))
    names = [f"`profiling/results/{name}`" for name in ("stacked_cpu.json", "emulated_k8/", "real_data")]
    found = hooks.on_page_markdown(" ".join(names), page, MkDocsConfig(), files)
    file, folder = "../profiling/results/stacked_cpu.json", "../profiling/results/emulated_k8/report.md"
    assert found == f"[{names[0]}]({file}) [{names[1]}]({folder}) {names[2]}"


def test_a_figure_that_is_not_there_is_an_error() -> None:
    env = Env("index.md")
    define_env(env)
    with pytest.raises(KeyError, match="there is no figure nowhere"):
        env.macros["figure"]("nowhere")
