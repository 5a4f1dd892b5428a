"""The README's examples run as printed, its tables are those of the committed results, its file tree is complete."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import sidpar
from sidpar.phases import COMPUTE
from sidpar.predict import main as predict_main
from sidpar.train import main as train_main
from tests.harness import ROOT, torchrun

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "profiling" / "results"


def block(sign: str) -> str:
    """The one block of Python that holds some text."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if sign in code]
    return str(found)


def examples() -> list[str]:
    """The library example, and the same with the lines that stream."""
    example, streaming = block("sidpar.SIDEngine("), block("sidpar.StreamingEngine(")
    before, loop = example.split("    engine = ")
    after = loop[loop.index("    result = engine.evaluate") :]
    return [example, before + textwrap.indent(streaming, "    ") + after]


@pytest.mark.parametrize(("ranks", "k"), [(1, 0), (4, 0), (4, 1)])
def test_the_library_example_runs(ranks: int, k: int, tmp_path: Path) -> None:
    """Modules, data and optimizer of one's own; the ranks print what their refiners have learned."""
    script = tmp_path / "example.py"
    script.write_text(examples()[k])
    done = torchrun(ranks, str(script))
    assert done.returncode == 0, done.stderr
    found = re.findall(r"rank (\d): refiners \[.*\], accuracy \[(.*)\]", done.stdout)
    assert sorted(rank for rank, _ in found) == [str(rank) for rank in range(ranks)]
    assert min(float(accuracy) for _, numbers in found for accuracy in numbers.split(", ")) > 0.9


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_builder_example_runs(ranks: int, tmp_path: Path) -> None:
    """In a folder of its own, by the command as printed, which names 4 ranks."""
    (tmp_path / "mynet.py").write_text(block("def build("))
    (command,) = re.findall(r"torchrun --standalone --nproc_per_node=4 (-m sidpar.train --model.builder .*)", README)
    done = torchrun(ranks, *command.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"8 refiners on {ranks} ranks" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    accuracies = json.loads((folder / "summary.json").read_text())["refiner_test_accuracy"]
    assert min(accuracies) > 0.8


def test_the_inference_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images as printed, through the three lines; they stand beside a run of a moment."""
    monkeypatch.chdir(tmp_path)
    train = ["--config", str(ROOT / "configs" / "digits.yaml"), "--run.dir", "runs/digits", "--optim.epochs", "1"]
    train_main([*train, "--parallel.device", "cpu"])
    names: dict[str, Any] = {}
    exec(block("from PIL import Image"), names)
    names |= {"sidpar": sidpar, "images": torch.from_numpy(names["images"].numpy()[:, None] * 16 / 255)}
    exec(block("sidpar.load("), names)
    assert names["beliefs"].shape == (9, 360, 10)
    (command,) = re.findall(r"python -m sidpar.predict (runs/.*)", README)
    (tmp_path / "docs").mkdir()
    predict_main(command.split())
    assert (tmp_path / "docs" / "predict.png").stat().st_size > 10_000


def test_the_file_tree_names_every_file() -> None:
    tree = README.split("## Where things are")[1].split("## Contributing")[0]
    for path in (ROOT / "sidpar").rglob("*.py"):
        name = str(path.relative_to(ROOT / "sidpar"))
        described = name if name.split("/")[0] not in ("models", "data") else f"{name.split('/')[0]}/"
        assert path.name == "__init__.py" or f" {described} " in tree, f"{name} is missing from the README's tree"
    for path in (ROOT / "profiling").glob("*.py"):
        assert f" {path.name} " in tree, f"{path.name} is missing from the README's tree"


def read(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / name / "report.json").read_text())
    return report


METHODS = {
    "SID `streaming`, sharded": ("sid", "streaming", "sharded"),
    "SID `streaming`, replicated": ("sid", "streaming", "replicated"),
    "SID `fused`, sharded": ("sid", "fused", "sharded"),
    "SID `fused`, replicated": ("sid", "fused", "replicated"),
    "SID `two_phase` (the paper's algorithms), sharded": ("sid", "two_phase", "sharded"),
    "BP naive": ("bp", "naive", "root"),
    "BP GPipe": ("bp", "gpipe", "cut"),
    "BP 1F1B": ("bp", "1f1b", "cut"),
    "BP interleaved 1F1B": ("bp", "interleaved", "cut"),
    "BP zero bubble": ("bp", "zero_bubble", "cut"),
    "BP ZBV": ("bp", "zbv", "cut"),
    "BP DualPipeV": ("bp", "dualpipe_v", "cut"),
    "DDP": ("ddp", "ddp", "whole"),
}


def settings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the cascade, without that of the plan's choice."""
    return [row for row in report["rows"] if row["network"] == "cascade" and not row["key"].endswith(" auto")]


def speed_table(report: dict[str, Any]) -> list[str]:
    """Measured speed-up over naive backpropagation, the law in brackets, for each M."""
    rows = {(r["method"], r["schedule"], r["extractor"], r["microbatches"]): r for r in settings(report)}
    counts = sorted({r["microbatches"] for r in report["rows"]})
    lines = ["| | " + " | ".join(f"M = {m}" for m in counts) + " |", "| --- " * (len(counts) + 1) + "|"]
    for name, method in METHODS.items():
        cells = []
        for m in counts:
            row = rows.get((*method, m))
            law = "" if row is None or row["law_speedup"] is None else f" ({row['law_speedup']:.2f})"
            cells.append("-" if row is None else f"{row['speedup_vs_naive_bp']:.2f}{law}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def memory_table(report: dict[str, Any], m: int, unit: str) -> list[str]:
    """Peak of saved activations per rank, and what else a rank holds, on the rank that holds most of it."""
    rows = {r["key"]: r for r in report["rows"]}
    size = {"KiB": 2**10, "MiB": 2**20}[unit]
    lines = [
        f"| | saved activations per rank, {unit} | parameters, gradients, optimizer state, versions, {unit} | "
        f"sent, {unit} |"
    ]
    lines.append("| --- " * 4 + "|")
    for name, key in MEMORY.items():
        row = rows[key.format(m=m)]
        saved = ", ".join(f"{saved / size:.1f}" for saved in row["saved_activation_bytes"])
        kinds = ("parameters", "gradients", "optimizer_state", "versions")
        held = max(sum(rank[kind] for kind in kinds) for rank in row["memory"]) / size
        lines.append(f"| {name.format(m=m)} | {saved} | {held:.1f} | {max(row['bytes_sent']) / size:.1f} |")
    return lines


MEMORY = {
    "SID `streaming`, replicated, M = {m}": "sid streaming replicated M={m}",
    "SID `streaming`, sharded, M = {m}": "sid streaming sharded M={m}",
    "SID `fused`, replicated, M = {m}": "sid fused replicated M={m}",
    "SID `fused`, sharded, M = {m}": "sid fused sharded M={m}",
    "SID `two_phase`, replicated, M = {m}": "sid two_phase replicated M={m}",
    "BP GPipe, M = {m}": "bp gpipe cut M={m}",
    "BP 1F1B, M = {m}": "bp 1f1b cut M={m}",
    "BP interleaved 1F1B, M = {m}": "bp interleaved cut M={m}",
    "BP zero bubble, M = {m}": "bp zero_bubble cut M={m}",
    "BP ZBV, M = {m}": "bp zbv cut M={m}",
    "DDP": "ddp ddp whole M=1",
    "BP, one process": "bp one process whole M=1",
    "BP, one process, {m} accumulated parts": "bp one process, accumulation whole M={m}",
    "BP, one process, checkpointing": "bp one process, checkpointing whole M=1",
}


def ratio_table(report: dict[str, Any]) -> list[str]:
    """Step times of real arithmetic, as ratios to the fastest SID."""
    rows = settings(report)
    groups = {
        "SID, streaming": [r for r in rows if r["schedule"] == "streaming"],
        "SID, synchronous": [r for r in rows if r["schedule"] in ("fused", "two_phase")],
        "best BP pipeline": [r for r in rows if r["method"] == "bp" and not r["schedule"].startswith("one process")],
        "DDP": [r for r in rows if r["method"] == "ddp"],
        "one process, 1 thread": [r for r in rows if r["key"] == "bp one process whole M=1"],
        "one process, 2 threads": [
            r for r in rows if r["schedule"] == "one process, 2 threads" and r["method"] == "bp"
        ],
    }
    best = {name: min(group, key=lambda row: row["step_ms"]["median"]) for name, group in groups.items()}
    best["SID, `parallel: auto`"] = next(row for row in report["rows"] if row["key"].endswith(" auto"))
    sid = min(best[f"SID, {kind}"]["step_ms"]["median"] for kind in ("streaming", "synchronous"))
    lines = ["| | setting | step, ms (p10 to p90) | step : that of the best SID tried |", "| --- " * 4 + "|"]
    for name, row in best.items():
        step = row["step_ms"]
        lines.append(
            f"| {name} | {row['schedule']}, {row['extractor']}, M = {row['microbatches']} | {step['median']:.0f} "
            f"({step['p10']:.0f} to {step['p90']:.0f}) | {step['median'] / sid:.2f} |"
        )
    return lines


@pytest.mark.parametrize("name", ["emulated_k4", "emulated_k8"])
def test_speed_tables(name: str) -> None:
    assert "\n".join(speed_table(read(name))) in README


STREAMS = {
    "SID `streaming`, sharded": "sid streaming sharded M=8",
    "SID `streaming`, replicated": "sid streaming replicated M=8",
    "SID `fused`, sharded": "sid fused sharded M=8",
    "BP 1F1B": "bp 1f1b cut M=8",
    "BP naive": "bp naive root M=1",
}


def stream_table(report: dict[str, Any]) -> list[str]:
    """Speed-up over naive backpropagation, and how much of a step the busiest rank works."""
    rows = {row["key"]: row for row in report["rows"]}
    lines = []
    for name, key in STREAMS.items():
        row, median = rows[key], rows[key]["step_ms"]["median"]
        busiest = max(sum(ms for phase, ms in rank.items() if phase in COMPUTE) for rank in row["phases_ms"])
        cells = [row["speedup_vs_naive_bp"], row["law_speedup"], row["model_step_ms"] / median, busiest / median]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return lines


def test_stream_table() -> None:
    assert "\n".join(stream_table(read("emulated_k8"))) in README


def test_ranks_of_a_stream_work() -> None:
    """The share of the measured timeline in which each rank works, from its first piece on."""
    lanes = json.loads((RESULTS / "emulated_k8" / "timelines.json").read_text())["sid streaming sharded M=8"][
        "measured"
    ]
    shares = []
    for lane in lanes:
        work = [(start, end) for phase, _, start, end in lane if phase in COMPUTE and phase != "extractor forward"]
        begin = min(start for start, _ in work)
        last = max(end for *_, end in lane)
        shares.append(sum(end - start for start, end in work) / (last - begin))
    assert len(shares) == 8
    assert min(shares) > 0.97
    assert "every rank works for 97 % or more" in " ".join(README.split())


@pytest.mark.parametrize(("name", "m", "unit"), [("emulated_k4", 16, "KiB"), ("wide_mlp_k2", 8, "MiB")])
def test_memory_tables(name: str, m: int, unit: str) -> None:
    assert "\n".join(memory_table(read(name), m, unit)) in README


@pytest.mark.parametrize("name", ["wide_mlp_k2", "simple_cnn_k2", "digits_k2"])
def test_ratio_tables(name: str) -> None:
    assert "\n".join(ratio_table(read(name))) in README


def test_recomputing() -> None:
    """What the README says of keeping the activations of batches in flight, or computing them twice."""
    rows = {row["key"]: row for row in read("simple_cnn_k2")["rows"]}
    kept, again = (rows[f"sid streaming sharded M=1{more}"] for more in ("", " recomputing"))
    ratio = again["step_ms"]["median"] / kept["step_ms"]["median"]
    sizes = [max(row["saved_activation_bytes"]) / 2**20 for row in (kept, again)]
    text = " ".join(README.split())
    assert f"{ratio:.2f} of the time" in text
    assert f"{sizes[0]:.0f} MiB of them to {sizes[1]:.0f}" in text


def test_sixteen_ranks_are_modelled() -> None:
    (report,) = json.loads((RESULTS / "projection_emulated" / "projection.json").read_text())["rows"]
    found = {p["method"]: p for p in report["projections"] if p["ranks"] == 16}
    ways = {
        "`streaming`": "sid streaming sharded",
        "DDP": "ddp ddp whole",
        "`fused`": "sid fused sharded",
        "1F1B": "bp 1f1b cut",
        "zero bubble at most": "bp zero_bubble cut",
    }
    text = README.split("K = 16, two refiners each")[1].split("[projection_emulated]")[0]
    for name, method in ways.items():
        assert f"{name} {found[method]['speedup_vs_naive_bp']:.2f}" in " ".join(text.split())
        assert (found[method]["bubble_fraction"] is None) == ("at most" in name)


def test_plan_table() -> None:
    text = (RESULTS / "plan" / "plan.txt").read_text()
    assert textwrap.indent(text[text.index("way  ") :].rstrip(), "    ") in README
    command = (
        "python -m sidpar.plan --config configs/digits.yaml --model.name wide_mlp --model.num_refiners 32 --ranks 8"
    )
    assert command in README


def test_stacked_table() -> None:
    """Time of stacked refiners over that of the loop."""
    found = json.loads((RESULTS / "stacked_cpu.json").read_text())["rows"]
    networks, batches = ("simple_cnn", "wide_mlp"), (8, 64, 256)
    ratios = {
        (row["network"], row["num_refiners"], row["batch_size"]): row["ratios"]["stacked_over_loop"]["median"]
        for row in found
    }
    lines = [
        "| refiners | " + " | ".join(f"`{name}`, {b} rows" for name in networks for b in batches) + " |",
        "| --- " * 7 + "|",
    ]
    for count in (4, 8, 16, 32):
        cells = [f"{ratios[name, count, b]:.2f}" for name in networks for b in batches]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    assert "\n".join(lines) in README


def test_staleness_tables() -> None:
    """Those of the report; with a staleness of 1, training loses less than half a point."""
    report = (RESULTS / "staleness" / "report.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", report, re.MULTILINE)
    assert len(tables) == 3
    assert all(table in README for table in tables)
    for name in ("digits", "fashion_mnist"):
        rows = json.loads((RESULTS / "staleness" / f"{name}.json").read_text())["rows"]
        fused, late = (
            [r["test_accuracy"] for r in rows if (r["staleness"], r["remedy"], r["diagnose"]) == (s, "none", 0)]
            for s in (0, 1)
        )
        assert len(fused) == len(late) == 3
        loss = 100 * (sum(fused) - sum(late)) / 3
        assert loss < 0.5
        assert f"{loss:.2f} " in README.split("### What staleness costs")[1]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/report.json")), ids=lambda path: path.parent.name)
def test_commands_are_those_of_the_results(path: Path) -> None:
    """Each committed comparison can be made again by a command that the README prints."""
    command = json.loads(path.read_text())["environment"]["command"]
    assert command in " ".join(README.split()), command


def test_pictures_are_there() -> None:
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README):
        assert (ROOT / picture).stat().st_size > 10_000, picture
