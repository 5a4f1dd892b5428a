"""Which folder a run has: its own, and no other job's."""

from pathlib import Path

import pytest

from sidpar.config.groups.optim import OptimConfig
from sidpar.config.groups.run import RunConfig
from sidpar.config.schema import Config
from sidpar.distributed.environment import Launch
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError
from sidpar.runs.launches import ask_for_requeue, was_stopped
from sidpar.runs.run_folder import OpenFolder, find_run_folder, read_config

ALONE = Runtime.single("cpu")


def opened(config: Config, runtime: Runtime = ALONE) -> OpenFolder:
    return OpenFolder(find_run_folder(config, runtime), config, runtime)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sidpar.runs.run_folder.time.strftime", lambda form: "20250101-000000")


def test_two_runs_that_begin_in_the_same_second() -> None:
    """Both have found the name free before either has made the folder."""
    configs = [Config(optim=OptimConfig(lr=rate)) for rate in (0.1, 0.2)]
    found = [find_run_folder(config, ALONE) for config in configs]
    paths = [OpenFolder(each, config, ALONE).path for each, config in zip(found, configs, strict=True)]
    assert [str(path) for path in paths] == ["runs/sid-20250101-000000", "runs/sid-20250101-000000-2"]
    assert "lr: 0.1" in (paths[0] / "config.yaml").read_text()


def test_two_jobs_in_one_folder() -> None:
    config = Config(run=RunConfig(dir="run"))
    first = opened(config)
    with pytest.raises(UsageError, match="run.dir=run is in use: another job trains there. Wait until it ends, or"):
        opened(config)
    first.close()
    opened(config).close()


def launched(name: str | None) -> Runtime:
    return Runtime(0, 1, ALONE.device, "none", launch=Launch(name))


@pytest.mark.parametrize("name", ["sid", "lr[0.1] *"])
def test_ranks_that_torchrun_starts_again_find_their_folder(name: str) -> None:
    """A run without run.dir, by the launcher that began it; not by another one, whatever their names."""
    config = Config(run=RunConfig(name=name))
    first, same, other = (launched(name) for name in ("host 7 100", "host 7 100", "host 7 900"))
    folder = opened(config, first)
    folder.close()
    assert find_run_folder(config, same).path == folder.path
    assert find_run_folder(config, same).state == "begun"
    assert find_run_folder(config, other).state == "new"
    assert find_run_folder(config, launched(None)).state == "new"


def test_only_the_launcher_that_was_stopped_must_not_go_on() -> None:
    runtime, config = launched("host 7 100"), Config(run=RunConfig(dir="run"))
    folder = opened(config, runtime)
    assert not was_stopped(config, runtime.launch)
    ask_for_requeue(folder.path, runtime)
    assert was_stopped(config, runtime.launch)
    assert not was_stopped(config, Launch("host 8 200")), "the same command again"
    assert not was_stopped(config, Launch(None))
    folder.close()
    opened(config, launched("host 8 200")).close()
    assert not was_stopped(config, runtime.launch), "it is under way again"


def test_a_run_is_complete_with_its_weights() -> None:
    """Without them it goes on, and writes them again."""
    config = Config(run=RunConfig(dir="run"))
    opened(config).close()
    for name, state in (("summary.json", "begun"), ("weights.safetensors", "complete")):
        Path("run", name).write_text("")
        assert find_run_folder(config, ALONE).state == state


def test_a_folder_that_cannot_be_used() -> None:
    name = "x" * 300
    config = Config(run=RunConfig(dir=name))
    assert not was_stopped(config, Launch("host 7 100"))
    with pytest.raises(UsageError, match=f"run.dir={name} cannot be used \\(File name too long\\): choose another"):
        find_run_folder(config, ALONE)
    with pytest.raises(UsageError, match="config.yaml cannot be read: .*File name too long"):
        read_config(Path(name))
