"""How the main job refuses: the same words on every rank, and nothing written."""

from pathlib import Path

import pytest
import yaml

from sidpar.train import parse
from tests.harness import ROOT, RankError, run_command
from tests.training.test_train import CONFIG, train


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "bp", "--parallel.microbatches", "1"], "it needs at least 2 microbatches"),
        (["--method", "bp", "--bp.checkpointing", "true"], "start one process, or use method=ddp"),
        (
            ["--method", "bp", "--parallel.placement", "[1,1]"],
            "placement [1, 1] has 2 sections and 2 layers and refiners, but schedule=1f1b on 2 ranks",
        ),
        (["--method", "bp", "--parallel.costs", "[1]"], "and one for each of the extractor's 13 layers before them"),
        (["--model.num_refiners", "1"], "1 refiners cannot be placed on 2 ranks"),
        (["--objective.alpha", "[0.5,0.5]"], "objective.alpha lists 2 numbers, but the cascade has 8 refiners"),
        (
            ["--parallel.placement", "[1,2]"],
            "placement [1, 2] has 2 ranks and 3 refiners, but 8 refiners",
        ),
        (["--parallel.placement", "cost", "--parallel.costs", "[1]"], "parallel.costs lists 1 numbers"),
        (
            ["--data.name", "cifar10", "--data.root", "/nowhere"],
            "cifar10 is not in torchvision's layout under",
        ),
        (["--method", "local"], "the local engine runs in one process, but there are 2 ranks"),
    ],
)
def test_messages_on_every_rank(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RankError) as failure:
        train(2, tmp_path / "run", *flags)
    assert set(failure.value.errors) == {0, 1}
    assert all("UsageError: " in text and message in text for text in failure.value.errors.values())
    assert not (tmp_path / "run").exists(), "nothing is written for a run that cannot start"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim.lr", "-1"], "optim.lr must be a positive number, got -1.0"),
        (["--model.num_refiners", "1"], "1 refiners cannot be placed on 2 ranks"),
        (["--parallel.backend", "nccl", "--parallel.device", "cpu"], "these ranks compute on the CPU: use gloo"),
        (
            ["--parallel.replicas", "3"],
            "replicas=3 needs 3 x K ranks, K for each copy of the cascade, but there are",
        ),
    ],
    ids=["config", "run", "runtime", "replicas"],
)
def test_messages_end_the_command(flags: list[str], message: str, tmp_path: Path) -> None:
    """Found by the configuration, by the run, by the runtime: exit code, and one line in place of a traceback."""
    done = run_command(2, "-m", "sidpar.train", *CONFIG, "--run.dir", f"{tmp_path}/run", *flags)
    assert done.returncode != 0
    assert message in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def refusal(folder: Path | str, *flags: str) -> str:
    """The message with which both ranks refuse."""
    with pytest.raises(RankError) as failure:
        train(2, Path(folder), *flags)
    assert len({text.splitlines()[-1] for text in failure.value.errors.values()}) == 1
    return failure.value.errors[0].splitlines()[-1]


@pytest.mark.processes
def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("precious\n")
    said = refusal(tmp_path)
    assert "already holds a run (metrics.jsonl), but no config.yaml that can be read" in said
    assert said.endswith("choose another folder, or remove it")
    assert (tmp_path / "metrics.jsonl").read_text() == "precious\n"


@pytest.mark.processes
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"run.dir={tmp_path}/file/run cannot be written" in refusal(tmp_path / "file" / "run")


@pytest.mark.processes
def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """On one rank, as all are told."""
    log = tmp_path / "logs" / "rank_1.log"
    log.mkdir(parents=True)
    assert f"UsageError: {log} cannot be written (Is a directory): make the folder writable" in refusal(tmp_path)


@pytest.mark.processes
def test_what_is_said_once(tmp_path: Path) -> None:
    """Of a run that can start, but perhaps not as its user thinks."""
    network = ["--model.builder", "tests.own_networks:counting", "--model.num_refiners", "2"]
    train(2, tmp_path / "run", *network, "--data.batch_size", "5000", "--optim.epochs", "1")
    log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()
    for said in (
        "checkpoints hold parameters and buffers, but not refiners.0.count, refiners.1.count, so a run that goes on",
        "data.batch_size=5000 is more than the 1437 training images: an epoch is one batch of them",
    ):
        assert log.count(said) == 1, log


@pytest.mark.processes
def test_a_failed_download(tmp_path: Path) -> None:
    """The folder's parent is a file, so nothing is asked of any server."""
    (tmp_path / "file").write_text("")
    flags = ["--data.name", "cifar10", "--data.download", "true", "--data.root", f"{tmp_path}/file/data"]
    assert "UsageError: cifar10 cannot be downloaded: " in refusal(tmp_path / "run", *flags)


def test_configs_are_differences_from_the_defaults() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        defaults = parse([]).to_dict()
        for group, settings in yaml.safe_load(path.read_text()).items():
            if not isinstance(settings, dict):
                assert defaults[group] != settings, f"{path.name}: {group} is the default"
                continue
            for key, value in settings.items():
                assert defaults[group][key] != value, f"{path.name}: {group}.{key} is the default"
