"""Networks by name in a configuration: what is decided, what is refused, and that they train by the command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import sidpar
from sidpar.config.groups.model import ModelConfig
from sidpar.config.schema import Config
from sidpar.errors import UsageError
from sidpar.methods import complete
from sidpar.models import named_model
from sidpar.models.backbones.resnet import ResNet18
from sidpar.models.network import build_network
from sidpar.plan import main as plan
from sidpar.predict import main as predict
from sidpar.train import parse
from tests.harness import ROOT, run_command, run_ranks, torchrun
from tests.training.test_train import job

DIGITS = ["--config", str(ROOT / "configs" / "digits.yaml"), "--optim.warmup_epochs", "0", "--data.batch_size", "128"]
RESNET = ["--model.name", "resnet18", "--model.width", "4", "--model.num_refiners", "2"]
REPLICATED = ["--parallel.extractor", "replicated"]


def completed(**settings: Any) -> ModelConfig:
    return complete(Config(model=ModelConfig(**settings))).model


def test_what_is_left_open_is_decided() -> None:
    found = completed(name="resnet18")
    assert (found.num_refiners, found.width, found.belief, found.reads_features) == (4, 64, "residual", False)
    assert (found.pool, found.carry, found.points, found.head) == ("mean", False, None, None)
    assert completed(name="resnet18", points=["layer3", "layer4"]).num_refiners == 2
    assert completed(backbone="torchvision:resnet50").num_refiners == 4
    assert (completed(name="vit_tiny").width, completed(name="vit_tiny").depth) == (192, 12)
    whole = completed(extractor="vgg11")
    assert (whole.name, whole.num_refiners, whole.width, whole.belief) == (None, 8, 64, None)
    for settings in ({"name": "vgg11_bn"}, {"backbone": "timm:resnet10t"}, {"extractor": "vit_tiny"}):
        done = complete(Config(model=ModelConfig(**settings)))  # type: ignore[arg-type]
        assert complete(done) == done


def test_settings_reach_the_cut() -> None:
    model = ModelConfig(
        name="resnet18", width=4, points=["layer3", "layer4"], head="mlp", belief="none", reads_features=True,
        freeze=["conv1"],
    )  # fmt: skip
    cascade = build_network(complete(Config(model=model)), (3, 16, 16), 10)
    first, last = cascade.refiners
    assert [type(layer).__name__ for layer in first.head.body] == ["Mean", "Linear", "ReLU", "Linear"]
    assert last.reader is not None
    assert not cascade.extractor[0].conv1.weight.requires_grad
    half = ModelConfig(name="resnet18", width=4, num_refiners=2, extractor_share=0.5)
    cascade = build_network(complete(Config(model=half)), (3, 32, 32), 10)
    assert "layers.layer3.0.conv1.weight" in dict(cascade.refiners[0].named_parameters())


def test_a_network_of_a_library() -> None:
    model = ModelConfig(backbone="torchvision:vit_b_32", options={"image_size": 32, "dropout": 0.1}, num_refiners=2)
    cascade = build_network(complete(Config(model=model)), (3, 32, 32), 10)
    assert cascade(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.processes
def test_it_starts_from_weights_which_its_run_does_not_need(tmp_path: Path) -> None:
    """A trained run is loaded without the file that it began with."""
    given = ResNet18((1, 8, 8), 5, width=4)
    torch.save(given.state_dict(), tmp_path / "weights.pth")
    flags = [*DIGITS, *RESNET, "--model.weights", str(tmp_path / "weights.pth"), "--optim.epochs", "0"]
    job(sidpar.Runtime.single("cpu"), [*flags, "--run.dir", str(tmp_path / "run")])
    saved = load_file(tmp_path / "run" / "weights.safetensors")
    assert torch.equal(saved["extractor.0.conv1.weight"], given.conv1.weight)
    (tmp_path / "weights.pth").unlink()
    assert torch.equal(sidpar.load(tmp_path / "run").extractor[0].conv1.weight, given.conv1.weight)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--model.backbone resnet50",
            "model.backbone must be torchvision:NAME or timm:NAME, such as torchvision:resnet5",
        ),
        ("--model.backbone keras:resnet50", "model.backbone must be torchvision:NAME or timm:NAME"),
        (
            "--model.backbone timm:a --model.name vgg11",
            "model.name=vgg11 would have no effect, because model.backbone=timm:a makes the network: remove it",
        ),
        (
            "--model.backbone timm:a --model.width 3",
            "model.width=3 would have no effect, because model.backbone=timm:a",
        ),
        (
            "--model.extractor vgg16",
            "model.extractor=vgg16 is unknown; choose one of ['resnet18', 'vgg11', 'vgg11_bn', ",
        ),
        (
            "--model.extractor vgg11 --model.head conv",
            "model.head=conv would have no effect, because model.extractor=vgg11 makes the network: remove it",
        ),
        (
            "--model.builder a:b --model.points [c]",
            "model.points=['c'] would have no effect, because model.builder=a:b",
        ),
        (
            "--model.builder a:b --model.weights f",
            "model.weights=f would have no effect, because model.builder=a:b makes",
        ),
        (
            "--model.points [layer2]",
            "model.points=['layer2'] would have no effect, because model.name=simple_cnn is not",
        ),
        ("--model.belief none", "model.belief=none would have no effect, because model.name=simple_cnn is not cut"),
        (
            "--model.weights f.pth",
            "model.weights=f.pth would have no effect, because model.name=simple_cnn starts from",
        ),
        (
            "--model.name resnet18 --model.depth 3",
            "model.depth=3 would have no effect, because model.name=resnet18 has fi",
        ),
        (
            "--model.name resnet18 --model.points []",
            "model.points must name at least one module, and none twice, got []",
        ),
        (
            "--model.name resnet18 --model.points [a,a]",
            "model.points must name at least one module, and none twice, got",
        ),
        (
            "--model.name resnet18 --model.points [a,b] --model.num_refiners 3",
            "model.points names 2 modules, which makes 2 refiners, but model.num_refiners=3: remove it, or give as",
        ),
        (
            "--model.name resnet18 --model.points [a,b] --model.extractor_share 0.5",
            "model.extractor_share=0.5 would have no effect, because model.points says where the extractor ends",
        ),
        ("--model.name resnet18 --model.extractor_share 1", "model.extractor_share must lie in (0, 1), got 1.0"),
        ("--model.name resnet18 --model.head large", "model.head: expected"),
        (
            "--model.name resnet18 --model.options.width 3",
            "model.options.width has a key of its own: set model.width=3",
        ),
        (
            "--model.name resnet18 --model.options.deep 3",
            "model.options.deep: model.name=resnet18 takes no deep; its optio",
        ),
    ],
)
def test_mistakes_of_the_configuration(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(flags.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "resnet18", "width": 4, "points": ["layer5"]},
            "model.name=resnet18, images [3, 16, 16]: point 'layer5' is no module of the network; it can be cut ",
        ),
        (
            {"name": "resnet18", "width": 4, "num_refiners": 12},
            "model.name=resnet18, images [3, 16, 16]: the network has 9 layers or blocks before which it can be cut",
        ),
        (
            {"name": "resnet18", "width": 4, "weights": "/no/file"},
            "model.weights=/no/file cannot be read ([Errno 2] No su",
        ),
        (
            {"name": "resnet18", "width": 4, "freeze": ["x"]},
            "model.freeze: the network has no module 'x'; it has conv1",
        ),
        (
            {"backbone": "torchvision:resnet19"},
            "model.backbone=torchvision:resnet19, images [3, 16, 16]: torchvision has",
        ),
        ({"extractor": "vgg11"}, "model.extractor=vgg11, images [3, 16, 16]: it halves images five times"),
    ],
)
def test_mistakes_that_the_network_shows(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_network(complete(Config(model=ModelConfig(**settings))), (3, 16, 16), 10)
    assert message in str(caught.value)


def test_every_name_has_a_model() -> None:
    for settings in ({}, {"backbone": "timm:a"}, {"extractor": "vgg11"}):
        named, model = named_model(ModelConfig(**settings))  # type: ignore[arg-type]
        assert named.endswith(f"={model.name}")


@pytest.mark.processes
@pytest.mark.long
def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained by torchrun on two ranks, interrupted and gone on with on one, predicted, planned."""
    run, flags = tmp_path / "run", [*DIGITS, *RESNET, *REPLICATED, "--optim.epochs", "1", "--checkpoint.every", "4"]
    done = torchrun(2, "-m", "sidpar.train", *flags, "--run.dir", str(run))
    assert done.returncode == 0, done.stderr
    assert "\nheads       " in done.stdout
    summary = json.loads((run / "summary.json").read_text())
    assert summary["heads"].endswith(" multiply-adds an image")
    assert len(summary["refiner_test_accuracy"]) == 2
    trained = load_file(run / "weights.safetensors")
    (run / "summary.json").unlink()
    *_, last = sorted((run / "checkpoints").glob("step_*"))
    shutil.rmtree(last)  # so that there is something left to train
    run_ranks(job, 1, [*flags, "--run.dir", str(run)])
    assert json.loads((run / "summary.json").read_text())["resumed_at"]
    again = load_file(run / "weights.safetensors")
    assert all((trained[name] - again[name]).abs().max() < 1e-4 for name in trained)

    Image.fromarray(torch.zeros(8, 8, dtype=torch.uint8).numpy()).save(tmp_path / "digit.png")
    predict([str(run), str(tmp_path / "digit.png")])
    assert "p_2" in capsys.readouterr().out
    plan([*flags, "--ranks", "2", "--data.batch_size", "16"])
    assert "job       resnet18, 2 refiners, batch 16, on 2 ranks" in capsys.readouterr().out


@pytest.mark.processes
@pytest.mark.parametrize(
    "flags",
    [
        ["--model.extractor", "resnet18", "--model.width", "4", "--model.num_refiners", "2", *REPLICATED],
        [*RESNET, "--method", "bp"],
        [*RESNET, "--method", "ddp", "--model.belief", "concat"],
        ["--model.name", "vit_tiny", "--model.width", "8", "--model.depth", "4", "--model.num_refiners", "2"],
        [*RESNET, *REPLICATED, "--model.freeze", "[conv1, bn1, layer1, layer2]"],
    ],
    ids=["extractor", "bp", "ddp", "vit sharded", "frozen"],
)
def test_every_reading_trains_on_two_ranks(flags: list[str], tmp_path: Path) -> None:
    done = run_command(
        2, "-m", "sidpar.train", *DIGITS, *flags, "--optim.epochs", "1", "--run.dir", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["num_refiners"] == 2
