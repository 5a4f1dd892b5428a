"""The report is remade from its two files: every figure in it is theirs, and a null is a dash."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report import BadFileError, remake
from reporting.draw import fullest
from reporting.tables import figure, per_rank

from tests.harness import ROOT

KIB = 1024
ROW: dict[str, Any] = {
    "network": "cascade",
    "world_size": 2,
    "samples_per_second": 640.0,
    "speedup_vs_naive_bp": 2.5,
    "speedup_vs_best_bp": 1.25,
    "law_speedup": 1.6,
    "paper_speedup": None,
    "model_step_ms": 18.0,
    "bubble_fraction": 0.1,
    "model_bubble_fraction": None,
    "saved_activation_bytes": [3 * KIB, 2 * KIB],
    "peak_memory_bytes": [1024 * KIB, 2048 * KIB],
    "bytes_sent": [5 * KIB, None],
    "messages_sent": [7, 6],
    "memory": [
        {"parameters": 8 * KIB, "gradients": 8 * KIB, "optimizer_state": 16 * KIB, "saved_activations": 3 * KIB}
        | {
            "versions": 5 * KIB,
            "communication_buffers": KIB,
            "allocator_peak": None,
            "allocator_reserved": None,
            "driver": None,
        }
        | {"resident": 4096 * KIB},
        None,
    ],
    "traffic": [{"state": {"messages": 4, "bytes": 2 * KIB}}, {"state": {"messages": 3, "bytes": 4 * KIB}}],
    "phases_ms": [
        {"refiner forward": 2.0, "receive wait": 90.0},
        {"refiner forward": 3.0, "refiner backward": 6.5, "unheard of": 0.25},
    ],
}


def row(method: str, schedule: str, extractor: str, microbatches: int | None, median: float | None) -> dict[str, Any]:
    step = None if median is None else {"median": median, "p10": median - 1, "p90": median + 1}
    names = {"key": f"{method} {schedule} {extractor} M={microbatches or 1}", "method": method, "schedule": schedule}
    return copy.deepcopy(ROW) | names | {"extractor": extractor, "microbatches": microbatches, "step_ms": step}


def synthetic() -> dict[str, Any]:
    """Seven rows; the last was not measured, so that all its figures are null."""
    empty = dict.fromkeys(ROW) | {"key": "bp zbv cut M=4", "method": "bp", "schedule": "zbv", "network": "cascade"}
    return {
        "environment": {"device": "some CPU", "backend": "gloo", "torch": "2.15.0", "commit": None, "gpus": 0},
        "workload": {"name": "emulated", "num_refiners": 4, "width | depth": "a|b"},
        "link": {"message": {"latency_us": 81.5, "gigabytes_per_s": 1.25}, "all_reduce": None},
        "costs_ms": {"extractor forward": 1.5, "extractor backward": None, "refiner forward": [1.0, 2.0]}
        | {"refiner backward": [2.0, None]},
        "rows": [
            row("bp", "naive", "cut", 1, 50.0),
            row("bp", "1f1b", "cut", 4, 25.0),
            row("sid", "fused", "sharded", 4, 20.0),
            row("sid", "fused", "sharded", 1, 30.0),
            row("sid", "two_phase", "replicated", 4, 24.0),
            row("bp", "one process", "whole", None, 41.0),
            empty | {"extractor": "cut", "microbatches": 4, "step_ms": None},
        ],
        "left_out": [{"key": "bp 1f1b cut M=1", "reason": "fewer microbatches than stages"}],
    }


def synthetic_timelines() -> dict[str, Any]:
    lane = [["refiner forward", "F0", 0.001, 0.003], ["send", None, 0.003, 0.0031], ["receive wait", "", 0.0031, 0.006]]
    other = [["forward", "F0", 0.002, 0.004], ["input backward", "I0", 0.004, 0.006], ["unheard of", "", 0.006, 0.0085]]
    return {
        "sid fused sharded M=4": {"measured": [lane, other], "modelled": [other, lane]},
        "bp naive cut M=1": {"measured": [other, None], "modelled": None},
        "bp zbv cut M=4": None,
    }


def write(folder: Path, report: Any, timelines: Any) -> Path:
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "timelines.json").write_text(json.dumps(timelines))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("profile"), synthetic(), synthetic_timelines())
    remake(folder)
    return folder


def section(folder: Path, title: str) -> list[list[str]]:
    """The cells of the lines of a section's first table."""
    text = (folder / "report.md").read_text().split(f"\n## {title}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line[1:-1].split(" |")] for line in text.splitlines()[2:]]


def test_speed_is_sorted_by_time(folder: Path) -> None:
    *lines, extractor = section(folder, "Speed")
    assert extractor[:7] == ["extractor alone", "forward, backward", "-", "-", "1", "1", "-"], "half of it is null"
    assert [line[6] for line in lines] == ["20.00", "24.00", "25.00", "30.00", "41.00", "50.00", "-"]
    assert lines[0][:6] == ["sid", "fused", "cascade", "sharded", "2", "4"]
    assert lines[0][7:] == ["19.00-21.00", "640.0", "2.50x", "1.25x", "1.60x", "18.00", "90 %", "10 % / -", "-"]
    assert lines[-1][4:] == ["-", "4", "-", "-", "-", "-", "-", "-", "-", "-", "- / -", "-"]


def test_both_costs_of_a_gpu_are_told(tmp_path: Path) -> None:
    report = synthetic()
    figures = {"refiners, the GPU alone": 2.5, "refiners, launched by the host": 4.0}
    remake(write(tmp_path, report | {"costs_ms": report["costs_ms"] | figures}, synthetic_timelines()))
    text = (tmp_path / "report.md").read_text()
    assert "| refiners, the GPU alone | 2.500 |\n| refiners, launched by the host | 4.000 |" in text
    assert "whichever is more for all pieces together" in text


def test_groups_are_told_where_there_are_several(tmp_path: Path) -> None:
    """Results from before there were groups say nothing of them, and were timed all in turn."""
    report = synthetic()
    places = [(None, None), (1, 0.975), (1, 0.975), (2, 1.05), (2, 1.05), (2, 1.05), (None, None)]
    for line, (group, drift) in zip(report["rows"], places, strict=True):
        line |= {"group": group, "drift": drift}
    remake(write(tmp_path, report, synthetic_timelines()))
    text = (tmp_path / "report.md").read_text()
    assert "| 1 | 0.975 | sid fused sharded M=4, bp 1f1b cut M=4 |" in text
    assert "| 2 | 1.050 | sid two_phase replicated M=4, sid fused sharded M=1, bp one process whole M=1 |" in text
    assert "`bp naive cut M=1` is in every group" in text
    for rows in (synthetic()["rows"], [line | {"group": 1, "drift": 1.0} for line in report["rows"]]):
        remake(write(tmp_path, report | {"rows": rows}, synthetic_timelines()))
        assert "drift" not in (tmp_path / "report.md").read_text()


def test_the_plans_choice_is_compared_with_all_settings_of_sid(tmp_path: Path) -> None:
    """It has a line of its own, and no place in the pictures."""
    report = synthetic()
    auto = row("sid", "streaming", "sharded", 2, 21.0)
    write(tmp_path, report | {"rows": [*report["rows"], auto | {"key": auto["key"] + " auto"}]}, synthetic_timelines())
    remake(tmp_path)
    expected = "`parallel: auto` chooses `sid streaming sharded M=2`: 21.00 ms, 1.05 times the fastest setting of SID"
    assert expected in (tmp_path / "report.md").read_text()
    write(tmp_path, report, synthetic_timelines())
    picture = (tmp_path / "speedup.png").read_bytes()
    remake(tmp_path)
    assert (tmp_path / "speedup.png").read_bytes() == picture
    assert "parallel: auto" not in (tmp_path / "report.md").read_text()


def test_memory_and_traffic_of_every_rank(folder: Path) -> None:
    memory, traffic = section(folder, "Memory"), section(folder, "Traffic")
    assert memory[0][:4] == ["sid fused sharded M=4", "3.00 KiB [3.00, 2.00]", "8.00 KiB", "8.00 KiB"]
    assert memory[0][4:] == ["16.00 KiB", "5.00 KiB", "1.00 KiB", "-", "-", "-", "4.00 MiB", "2.00 MiB"]
    assert traffic[0] == ["sid fused sharded M=4", "7 [7, 6]", "5.00 KiB [5.00, -]", "4: 4.00 KiB"]
    assert set(memory[-1][1:] + traffic[-1][1:]) == {"-"}


def test_phases_are_those_of_the_rank_that_works_most(folder: Path) -> None:
    """Rank 0 waits for longer than rank 1 works; the order of the columns is the order of the legend."""
    text = (folder / "report.md").read_text()
    assert "| row | rank | refiner forward | refiner backward | receive wait | unheard of |" in text
    assert section(folder, "Phases")[0] == ["sid fused sharded M=4", "1", "3.000", "6.500", "-", "0.250"]


def test_conditions_link_costs_and_what_was_left_out(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    for line in (
        "**CPU with gloo; not measured on a GPU.**",
        "SID is faster here, 1.25x: `sid fused sharded M=4` with 20.00 ms against `bp 1f1b cut M=4` with 25.00 ms",
        "| commit | - |",
        "| width \\| depth | a\\|b |",
        "| message | 81.50 | 1.250 |\n| all_reduce | - | - |",
        "| extractor forward | 1.500 |\n| extractor backward | - |\n| refiner forward | 3.000 [1.000, 2.000] |",
        "| refiner backward | 2.000 [2.000, -] |",
        "- bp 1f1b cut M=1: fewer microbatches than stages",
    ):
        assert line in text
    assert "None" not in text


def test_trace_has_a_process_per_key_and_microseconds(folder: Path) -> None:
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert list(names.values()) == ["sid fused sharded M=4", "bp naive cut M=1"]
    threads = [(e["pid"], e["tid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"]
    assert threads == [(0, 0, "rank 0"), (0, 1, "rank 1"), (1, 0, "rank 0"), (1, 1, "rank 1")]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 9
    assert {"name": "send", "pid": 0, "tid": 0, "ts": 3000.0, "dur": 100.0}.items() <= spans[1].items()
    assert spans[0]["args"] == {"label": "F0"}


def test_the_bar_is_one_rank_not_a_mixture() -> None:
    memory = [{"parameters": 10, "gradients": 1}, {"parameters": 2, "gradients": 20, "allocator_peak": 30}]
    stack = fullest(ROW | {"memory": memory, "saved_activation_bytes": [4, None]})
    assert stack is not None
    assert (stack["parameters"], stack["gradients"], stack["saved_activations"], stack["allocator_peak"]) == (
        2,
        20,
        0,
        30,
    )
    assert fullest(ROW | {"memory": None, "saved_activation_bytes": None}) is None


def test_figures() -> None:
    assert [figure(value) for value in (None, 0, 0.12345, 12.345, 123.45, 12345)] == [
        *("-", "0.000", "0.123", "12.35", "123.5", "12,345")
    ]
    assert per_rank([None, None], sizes=True) == per_rank(None, sizes=False) == "-"


def test_a_report_without_rows_is_still_a_report(tmp_path: Path) -> None:
    remake(write(tmp_path, dict.fromkeys(synthetic()), {}))
    assert "were not both measured" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.pop("link"), "the file lacks 'link'"),
        (lambda report: report["rows"][1].pop("memory"), r"the file\['rows'\]\[1\] lacks 'memory'"),
        (lambda report: report["rows"][0].update(microbatches="4"), r"\['microbatches'\] is no number"),
        (lambda report: report["rows"][0].update(group="1"), r"\['group'\] is no number"),
        (lambda report: report["rows"][0].update(bytes_sent=5), r"\['bytes_sent'\] is no list"),
        (lambda report: report["rows"][0].update(method=None), r"\['method'\] is no text"),
        (lambda report: report["rows"].append(report["rows"][0]), "two rows have the key 'bp naive cut M=1'"),
    ],
)
def test_a_malformed_report_is_named(change: Any, message: str, tmp_path: Path) -> None:
    report = synthetic()
    change(report)
    with pytest.raises(BadFileError, match=rf"report\.json: .*{message}; make it with .*profiling/speedup\.py"):
        remake(write(tmp_path, report, {}))


def test_malformed_timelines_are_named(tmp_path: Path) -> None:
    timelines = {"sid fused sharded M=4": {"measured": [[["forward", "F0", 0.0]]], "modelled": None}}
    with pytest.raises(BadFileError, match=r"timelines\.json: .*\['measured'\]\[0\]\[0\] is no list of 4"):
        remake(write(tmp_path, synthetic(), timelines))


@pytest.mark.processes
def test_a_missing_file_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    write(tmp_path, synthetic(), {})
    (tmp_path / "timelines.json").unlink()
    command = [sys.executable, str(ROOT / "profiling" / "report.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{tmp_path / 'timelines.json'}: No such file" in done.stderr
    assert "profiling/speedup.py" in done.stderr
