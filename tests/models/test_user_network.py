"""`model.builder`: a user's own network, trained by every method, and every way in which it can be wrong."""

import json
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sidpar import Cascade, Runtime, UsageError
from sidpar.config.groups.model import ModelConfig
from sidpar.models.user_network import build_own
from sidpar.plan import main as plan
from sidpar.train import parse
from sidpar.training.same_network import build_alike
from tests.harness import make_run, run_ranks
from tests.own_networks import build
from tests.training.test_train import job

BASE = ["--config", "configs/digits.yaml", "--model.num_refiners", "4", "--optim.warmup_epochs", "0"]
OWN = [*BASE, "--model.builder", "tests.own_networks:build", "--optim.epochs", "1"]


def train(ranks: int, folder: Path, *flags: str) -> Path:
    run_ranks(job, ranks, [*OWN, "--run.dir", str(folder), *flags])
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch in one process."""
    return train(1, tmp_path_factory.mktemp("own") / "run", "--model.options.width", "20")


@pytest.mark.processes
def test_an_own_network_trains_to_the_same_weights_on_ranks(alone: Path, tmp_path: Path) -> None:
    """With tuples for features and states; initial weights and training do not depend on K."""
    placed = load_file(train(3, tmp_path / "run", "--model.options", "{width: 20}") / "weights.safetensors")
    expected = load_file(alone / "weights.safetensors")
    assert expected["extractor.first.weight"].shape == (20, 64)
    assert placed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (tensor - placed[name]).abs().max() < 1e-4, name
    model = yaml.safe_load((alone / "config.yaml").read_text())["model"]
    assert (model["name"], model["builder"]) == (None, "tests.own_networks:build")
    assert model["options"] == {"width": 20}


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (2, ["--parallel.auto", "true"]),
        (2, ["--method", "bp", "--parallel.extractor", "root"]),
        (2, ["--method", "bp", "--model.builder", "tests.own_networks:sequential"]),
        (2, ["--method", "ddp"]),
        (2, ["--method", "ddp", "--model.builder", "tests.own_networks:with_spare", "--checkpoint.every", "3"]),
        (1, ["--method", "bp", "--compute.channels_last", "true"]),
        (2, ["--model.builder", "tests.own_networks:made"]),
    ],
    ids=["auto", "bp root", "bp cut", "ddp", "ddp with a spare layer", "bp", "callable object"],
)
def test_every_method_takes_it(ranks: int, flags: list[str], tmp_path: Path) -> None:
    folder = train(ranks, tmp_path / "run", *flags)
    losses = [row["loss"][-1] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
    assert losses[-1] < math.log(10), "it has learned something"


@pytest.mark.processes
def test_a_parameter_without_elements_is_checkpointed(tmp_path: Path) -> None:
    flags = ("--model.builder", "tests.own_networks:with_empty", "--optim.clip", "1", "--checkpoint.every", "3")
    folder = train(1, tmp_path / "run", *flags)
    assert load_file(folder / "weights.safetensors")["refiners.1.prompts"].shape == (0, 4)
    (folder / "summary.json").unlink()
    train(1, folder, *flags)
    assert json.loads((folder / "summary.json").read_text())["resumed_at"]


def test_it_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan([*OWN, "--ranks", "2", "--data.batch_size", "16", "--out", str(tmp_path)])
    assert "job       tests.own_networks:build, 4 refiners, batch 16, on 2 ranks" in capsys.readouterr().out
    costs = ["--costs", str(tmp_path / "costs.json"), "--data.batch_size", "16", "--ranks", "2"]
    plan([*OWN, *costs])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        plan([*OWN, *costs, "--model.options.width", "8"])
    assert "was measured with model {'builder': 'tests.own_networks:build', 'options': {}" in capsys.readouterr().err


MISTAKES = {
    "nowhere.mynet:build": "UsageError: model.builder=nowhere.mynet:build: there is no module nowhere, neither in",
    "tests.nowhere:build": "there is no module tests.nowhere, neither in",
    "tests.own_networks:bild": "own_networks.py has no bild: define it there, or correct the name",
    "tests.own_networks:NUMBER": "UsageError: model.builder=tests.own_networks:NUMBER is a int, but must be a function",
    "tests.own_networks:raises": 'KeyError: "the builder\'s own mistake" | in model.builder=tests.own_networks:raises',
    "tests.own_networks:too_few": "has the signature (image_shape: tuple[int, int, int]) -> "
    "sidpar.cascade.cascade.Cascade, but is called by keyword with image_shape, num_classes, "
    "num_refiners, seed: got an unexpected keyword argument 'num_classes'",
    "tests.own_networks:no_cascade": "no_cascade returns a Linear, but must return a sidpar.Cascade",
    "tests.own_networks:other_classes": "returns a cascade with num_classes=7, but the dataset has 10",
    "tests.own_networks:other_refiners": "returns 3 refiners, but model.num_refiners=4: use the num_refiners",
    "tests.own_networks:other_images": "images [1, 8, 8]: the extractor does not take inputs of shape [B, *[1, 8, 8]]",
    "tests.own_networks:tokens": "the beliefs are [B, 8, 10], but an image has one label, so they must be [B, 10]",
    "tests.own_networks:build wdth=3": "UsageError: model.options.wdth: model.builder=tests.own_networks:build takes "
    "no wdth; its options are ['width']",
    "tests.own_networks:ends": "UsageError: sys.exit(0) was called in model.builder=tests.own_networks:ends, called",
    "tests.own_networks:in_double": "extractor.first.weight is torch.float64, but images and features are torch.float32"
    ": return the network in float32",
    "tests.own_networks:in_half": "refiners.1.enter.weight is torch.float16, but images and",
    "tests.own_networks:lazy": "images [1, 8, 8]: extractor.1.weight has no shape before the first batch (it belongs "
    "to a lazy layer, such as nn.LazyLinear): give the layer its sizes",
    "tests.own_networks:with_extra_state": "refiners.1._extra_state is in the cascade's state_dict, but it is "
    "neither a parameter nor a buffer, and checkpoints hold only these: keep it in a buffer, and use no get_",
    "tests.own_networks:unseeded": "UsageError: the ranks have built different networks: rank 0 has initial weights",
}


def refusals(runtime: Runtime, folder: str) -> list[str]:
    """What every mistake ends with on this rank: the error and its notes."""
    texts = []
    for mistake in MISTAKES:
        builder, *options = mistake.split()
        flags = [f"--model.options.{option}" for option in options]
        config = parse([*BASE, "--run.dir", folder, "--model.builder", builder, *flags])
        try:
            make_run(config, runtime)
        except Exception as error:
            notes = getattr(error, "__notes__", [])
            texts.append(" | ".join([f"{type(error).__name__}: {error}", *notes]))
    return texts


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    folder = tmp_path_factory.mktemp("refused") / "run"
    answers = run_ranks(refusals, 2, str(folder))
    assert not folder.exists(), "nothing is written for a run that cannot start"
    return answers


@pytest.mark.processes
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_on_every_rank(mistake: str, refused: list[list[str]]) -> None:
    first, second = (answer[list(MISTAKES).index(mistake)] for answer in refused)
    assert MISTAKES[mistake] in first
    assert first == second


def build_unless(error: Exception, rank: int) -> Cascade:
    if rank == 1:
        raise error
    return build((1, 8, 8), 10, 2, seed=0)


def fail_on_rank_1(runtime: Runtime, error: Exception) -> str:
    try:
        build_alike(partial(build_unless, error, runtime.rank), runtime)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "built"


@pytest.mark.processes
def test_a_builder_that_fails_on_one_rank_ends_all() -> None:
    text = "UsageError: rank 1 cannot build the network: no module"
    assert run_ranks(fail_on_rank_1, 2, UsageError("no module")) == [text, text]
    own = run_ranks(fail_on_rank_1, 2, ValueError("no such file"))
    assert own == ["UsageError: rank 1 cannot build the network: ValueError: no such file", "ValueError: no such file"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model.builder mynet", "model.builder must be package.module:function, such as mynet:build, got 'mynet'"),
        ("--model.builder my/net.py:build", "model.builder must be package.module:function"),
        ("--model.builder mynet:", "model.builder must be package.module:function"),
        (
            "--model.options.width 3",
            "model.options.width: model.name=simple_cnn takes no width; its options are []",
        ),
        (
            "--model.builder a:b --model.name wide_mlp",
            "model.name=wide_mlp would have no effect, because model.builder=a:b makes the network: remove it",
        ),
        ("--model.builder a:b --model.width 3", "model.width=3 would have no effect, because model.builder=a:b"),
        ("--model.builder a:b --model.options.seed 3", "model.options.seed=3: the builder is given seed in any case"),
        (
            "--model.builder a:b --model.options {1:2}",
            "keys of model.options become keywords, so they must be Python names, got 1",
        ),
        ("--model.builder a:b --model.options {w-d:2}", "so they must be Python names, got 'w-d': rename it"),
        ("--model.builder a:b --model.options {w:{class_path:c}}", "model.options.w must be a number, a string, true"),
        ("--model.builder a:b --model.options 3", "model.options: expected"),
    ],
)
def test_mistakes_of_the_configuration(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([part.replace(":2", ": 2").replace("w:{", "w: {") for part in flags.split()])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def model(builder: str) -> ModelConfig:
    return ModelConfig(builder=builder, num_refiners=2)


def test_the_current_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m` searches it, also for a script that lies elsewhere."""
    (tmp_path / "here_only.py").write_text("from tests.own_networks import build\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with pytest.raises(UsageError, match="there is no module here_only"):
        build_own(model("here_only:build"), (1, 8, 8), 10, 0)
    monkeypatch.chdir(tmp_path)
    built = build_own(model("here_only:build"), (1, 8, 8), 10, 0)
    again = build_own(model("here_only:build"), (1, 8, 8), 10, 0)
    other = build_own(model("here_only:build"), (1, 8, 8), 10, 1)
    first, second, third = (cascade.refiners[0].head.weight for cascade in (built, again, other))
    assert torch.equal(first, second), "drawn under the run's seed"
    assert not torch.equal(first, third)


def test_a_missing_import_of_the_users_module_is_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_dependency\n")
    (tmp_path / "needs_name.py").write_text("from tests.own_networks import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_dependency'") as missing:
        build_own(model("needs_more:build"), (1, 8, 8), 10, 0)
    assert missing.value.__notes__ == ["on importing model.builder=needs_more:build"]
    with pytest.raises(ImportError, match="cannot import name 'no_such_name'"):
        build_own(model("needs_name:build"), (1, 8, 8), 10, 0)
