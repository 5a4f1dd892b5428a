"""The program from its command line to its files, without torchrun, and with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from sidpar.plan import main
from tests.harness import ROOT, run_command

CONFIG = ["--config", str(ROOT / "configs" / "digits.yaml"), "--data.batch_size", "32", "--model.num_refiners", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo on two ranks, its pieces measured here."""
    out = tmp_path_factory.mktemp("plan") / "out"
    main([*CONFIG, "--ranks", "2", "--latency", "50us", "--bandwidth", "1GB/s", "--out", str(out)])
    return out


def plan(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What the program prints, from the costs that were measured."""
    main([*CONFIG, "--costs", str(folder / "costs.json"), *flags])
    return capsys.readouterr().out


def test_files(folder: Path) -> None:
    text, record = (folder / "plan.txt").read_text(), json.loads((folder / "plan.json").read_text())
    assert record["conditions"]["job"] == "simple_cnn, 4 refiners, batch 32, on 2 ranks"
    assert record["conditions"]["messages"] == "assumed, 50us and 1GB/s on every link"
    assert record["conditions"]["costs"].startswith("measured on ")
    assert "As configured: SID fused (sharded extractor) with M = 1" in text
    assert (record["configured"]["schedule"], record["configured"]["placement"]) == ("fused", [2, 2])
    rows = {(option["method"], option["schedule"], option["extractor"]) for option in record["options"]}
    sid = {("sid", s, e) for s in ("two_phase", "fused", "streaming") for e in ("replicated", "root", "sharded")}
    pipelines = ("naive", "gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipe_v")
    assert rows == sid | {("bp", name, "cut") for name in pipelines} | {
        *(("ddp", "ddp", "whole"), ("bp", "one device", "whole"), ("bp", "one device, checkpointing", "whole"))
    }
    times = [option["predicted_step_seconds"] for option in record["options"]]
    assert times == sorted(times)
    assert min(times) > 0
    assert record["chosen"]["method"] == "sid"
    picture = image.imread(folder / "plan.png")
    assert len({tuple(pixel) for row in picture[::5] for pixel in row[::5]}) > 10, "the picture is blank"


def test_what_is_printed(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """State [16, 10] and features [16, 128] in fp32 for M = 2; memory by kind for each rank."""
    flags = ["--ranks", "2", "--parallel.microbatches", "2", "--parallel.placement", "[3,1]", "--out", str(tmp_path)]
    text = plan(folder, capsys, *flags)
    lines = text.splitlines()
    assert f"costs     from {folder}/costs.json, measured on" in text
    assert "messages  assumed, 10us and 100GB/s on every link" in lines
    assert "memory    no limit" in lines
    assert "  refiners per rank   3 on 1 rank, 1 on 1 rank" in lines
    assert "  message             state: 2 of 640 B a step" in lines
    assert "  message             features: 1 of 16.00 KiB a step" in lines
    assert "  message             feature gradient: 2 of 8.00 KiB a step" in lines
    assert "  memory, KiB" in lines or "  memory, MiB" in lines
    assert len([line for line in lines if line.startswith("sid ")]) == 9
    assert max(len(line) for line in lines if not line.startswith("costs ")) <= 80
    # The verdict is that of the costs measured here, which need not be for SID.
    record = json.loads((tmp_path / "plan.json").read_text())
    others = [o["predicted_step_seconds"] for o in record["options"] if o["method"] != "sid"]
    ahead = record["chosen"]["predicted_step_seconds"] <= min(others)
    (verdict,) = [line for line in lines if "the fastest: " in line]
    assert verdict.startswith("SID is predicted to be the fastest: " if ahead else "SID is not the fastest: ")


def test_memory_decides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(folder, capsys, "--ranks", "2", "--device-memory", "1MB")
    assert "memory    976.56 KiB on each rank" in text
    assert "No way of SID is known to fit." in text
    assert "does not fit" in text
    assert "chosen" not in text


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--method", "ddp"], "DDP"),
        (["--method", "ddp", "--bp.checkpointing", "true"], "DDP, checkpointing"),
        (["--method", "local"], "SID fused (replicated extractor) with M = 1"),
        (["--parallel.microbatches", "100"], "SID fused (sharded extractor) with M = 32"),
        (["--method", "bp"], "BP 1f1b (cut extractor) with M = 8"),
        (["--method", "bp", "--parallel.schedule", "zbv"], "BP zbv (cut extractor) with M = 8"),
        (
            ["--method", "bp", "--parallel.schedule", "naive", "--parallel.microbatches", "1"],
            "BP naive (cut extractor)",
        ),
        (["--parallel.schedule", "streaming"], "SID streaming (sharded extractor) with M = 1"),
        (["--parallel.schedule", "streaming", "--parallel.staleness", "0"], "SID fused (sharded extractor) with M = 1"),
        (["--parallel.placement", "cost", "--parallel.costs", "[1,1,1,9]"], "SID fused (sharded extractor) with M = 1"),
    ],
)
def test_whatever_is_configured(flags: list[str], name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(folder, capsys, "--ranks", "2", *flags)
    assert f"As configured: {name}" in text
    if "[1,1,1,9]" in flags:
        assert "refiners per rank   3 on 1 rank, 1 on 1 rank" in text


@pytest.mark.processes
def test_measured_messages() -> None:
    """On ranks of their own; rank 0 prints."""
    done = run_command(2, "-m", "sidpar.plan", *CONFIG, "--measured")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("messages  measured on these 2 ranks, gloo") == 1
    assert "by 2 at once" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ranks", "0"], "--ranks must be at least 1, got 0"),
        (["--ranks", "two"], "ranks: expected"),
        (["--ranks", "5"], "4 refiners cannot be placed on 5 ranks"),
        (["--latency", "5 fortnights"], "--latency must be a number and one of the units ns, us, ms, s"),
        (["--latency=-5us"], "--latency must be at least 0, got -5us"),
        (["--bandwidth", "300GB"], "--bandwidth must be a number and one of the units B/s"),
        (["--bandwidth=-1GB/s"], "--bandwidth must be positive, got -1GB/s"),
        (["--device-memory", "80"], "--device-memory must be a number and one of the units B, kB"),
        (["--device-memory", "0GB"], "--device-memory must be positive, got 0GB"),
        (["--measured"], "--measured sends messages between ranks, but there is one process"),
        (["--measured", "--latency", "1us"], "remove --latency and --bandwidth, or --measured"),
        (["--costs", "nowhere.json"], "--costs nowhere.json cannot be read"),
        (["--costs", str(ROOT / "pyproject.toml")], "give a costs.json that a plan has written"),
        (["--parallel.replicas", "3"], "parallel.replicas=3 does not divide 4 ranks"),
        (
            ["--method", "bp", "--bp.checkpointing", "true"],
            "bp.checkpointing and bp.deep_supervision are for one process",
        ),
        (["--objective.alpha", "[0.5,0.5]"], "objective.alpha lists 2 numbers, but the cascade has 4 refiners"),
        (["--out", "/dev/null/out"], "--out /dev/null/out cannot be created"),
        (["--optim.lr", "-1"], "optim.lr must be a positive number, got -1.0"),
        (["--data.name", "cifar10", "--data.root", "/nowhere", "--ranks", "2"], "is not in torchvision's layout"),
    ],
)
def test_messages(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*CONFIG, "--ranks", "4", *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_costs_of_another_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        plan(folder, capsys, "--ranks", "2", "--compute.autocast", "bf16")
    assert ended.value.code == 2
    assert "was measured with compute {'autocast': 'none'" in capsys.readouterr().err


def test_costs_of_a_smaller_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan(folder, capsys, "--ranks", "2", "--data.batch_size", "64")
    assert (
        "holds costs of batches of 2 to 32 rows, but a replica's share of data.batch_size=64 has 64"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["plain_cnn", "simple_cnn"])
def test_backpropagation_is_planned_where_sid_cannot_be(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A network without beliefs, and more ranks than refiners."""
    main([*CONFIG, "--model.name", name, "--method", "ddp", "--ranks", "5"])
    text = capsys.readouterr().out
    assert "No way of SID is known to fit; " in text
    assert "\nsid " not in text


def test_costs_that_are_not_costs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record: dict[str, Any] = json.loads((folder / "costs.json").read_text())
    record["costs"]["refiners"][0]["forward"]["seconds"][0] = -1
    (tmp_path / "costs.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        plan(tmp_path, capsys, "--ranks", "2")
    assert "costs need rows > 0 and seconds >= 0" in capsys.readouterr().err


def test_a_full_disk_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / ".plan.txt").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="1"):
        plan(folder, capsys, "--ranks", "2", "--out", str(tmp_path))
    assert "plan.txt cannot be written (No space left on device): free space there" in capsys.readouterr().err
