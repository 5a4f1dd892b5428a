"""Defaults < YAML < flags, and one clear line for everything that is wrong."""

from pathlib import Path

import pytest
import yaml

from sidpar.config.schema import Config
from sidpar.train import parse
from tests.harness import ROOT


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("optim:\n  lr: 0.5\n  epochs: 7\nmethod: local\n")
    config = parse(["--config", str(file), "--optim.epochs", "9"])
    assert (config.optim.lr, config.optim.epochs, config.method) == (0.5, 9, "local")
    assert config.data == Config().data


def test_a_resolved_configuration_reads_back(tmp_path: Path) -> None:
    for flags in (["--optim.name", "sgd"], ["--model.name", "wide_mlp"], ["--parallel.placement", "[1, 7]"]):
        config = parse(flags)
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config.to_dict()))
        assert parse(["--config", str(file)]) == config


def test_settings_left_open_are_filled_in_where_they_have_an_effect() -> None:
    sgd = parse(["--optim.name", "sgd"]).optim
    assert (sgd.momentum, sgd.nesterov) == (0.9, True)
    assert parse(["--optim.name", "sgd", "--optim.momentum", "0"]).optim.nesterov is False
    assert parse([]).optim.momentum is None
    assert parse(["--model.name", "wide_mlp"]).model.width == 1024
    assert parse(["--data.name", "cifar10"]).data.root == "data"
    folder = parse(["--data.name", "image_folder"]).data
    assert (folder.root, folder.image_size, folder.workers) == ("data", 64, 2)
    assert parse(["--data.name", "tiny_imagenet"]).data.workers is None
    streaming = parse(["--parallel.schedule", "streaming"]).parallel
    assert (streaming.staleness, streaming.weight_prediction, streaming.diagnose_every) == (1, False, 0)
    auto = parse(["--parallel.auto", "true", "--parallel.microbatches", "4"]).parallel
    assert (auto.extractor, auto.schedule, auto.microbatches, auto.placement) == (None, None, 4, None), "for the plan"


def test_auto_in_a_file(tmp_path: Path) -> None:
    """A word for the whole group; flags are added to it."""
    (tmp_path / "auto.yaml").write_text("parallel: auto\n")
    found = parse(["--config", str(tmp_path / "auto.yaml"), "--parallel.extractor", "root"]).parallel
    assert (found.auto, found.extractor, found.schedule) == (True, "root", None)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    parse(["--config", str(path)])


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--optim.name", "sgd", "--optim.lr", "0.25", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["optim"]
    assert (printed["lr"], printed["momentum"]) == (0.25, 0.9), "what would run, defaults filled in"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--optim.lrr 1", "unrecognized arguments: --optim.lrr 1"),
        ("--optim.lr fast", "optim.lr: expected"),
        ("--optim.lr -1", "optim.lr must be a positive number, got -1.0"),
        ("--optim.lr nan", "optim.lr: expected"),
        ("--optim.extractor_lr 0", "optim.extractor_lr must be a positive number, got 0.0"),
        (
            "--parallel.staleness 1",
            "parallel.staleness=1 would have no effect, because only parallel.schedule",
        ),
        ("--parallel.schedule streaming --parallel.staleness -1", "parallel.staleness must be at least 0, got -1"),
        ("--parallel.diagnose_every 5", "because without staleness nothing differs"),
        ("--method bp --parallel.refiner_execution stacked", "because method=bp has one loss for all refiners"),
        (
            "--method bp --parallel.schedule streaming",
            "method=bp does not offer parallel.schedule=streaming; choose one of",
        ),
        ("--optim.epochs -1", "optim.epochs must be at least 0, got -1"),
        ("--optim.epochs 1.5", "optim.epochs: expected"),
        ("--optim.weight_decay -0.1", "optim.weight_decay must be at least 0, got -0.1"),
        ("--optim.clip 0", "optim.clip must be a positive number, got 0.0"),
        ("--optim.warmup_epochs 3 --optim.epochs 2", "optim.warmup_epochs=3 is longer than optim.epochs=2"),
        ("--optim.name lion", "optim.name: expected"),
        ("--optim.momentum 0.8", "optim.momentum=0.8 would have no effect, because optim.name=adam has no momentum"),
        ("--optim.name sgd --optim.momentum 1", "optim.momentum must lie in [0, 1), got 1.0"),
        ("--optim.name sgd --optim.momentum 0 --optim.nesterov true", "optim.nesterov=true needs optim.momentum > 0"),
        ("--run.seed -1", "run.seed must be at least 0, got -1"),
        ("--run.log_every 0", "run.log_every must be at least 1, got 0"),
        ("--run.eval_every 0", "run.eval_every must be at least 1, got 0"),
        ("--data.name mnist", "data.name=mnist is unknown; choose one of ['digits', 'fashion_mnist'"),
        ("--data.batch_size 0", "data.batch_size must be at least 1, got 0"),
        ("--data.eval_batch_size 0", "data.eval_batch_size must be at least 1, got 0"),
        ("--data.root /d", "data.root=/d would have no effect, because data.name=digits is not read from a folder"),
        ("--data.download true", "data.download=True would have no effect"),
        (
            "--data.name tiny_imagenet --data.download true",
            "because torchvision does not download data.name=tiny_imagen",
        ),
        ("--data.name image_folder --data.download true", "data.download=True would have no effect, because torchvis"),
        ("--data.image_size 32", "data.image_size=32 would have no effect, because data.name=digits has images of one"),
        ("--data.name tiny_imagenet --data.image_size 32", "data.image_size=32 would have no effect, because data.nam"),
        ("--data.name cifar10 --data.workers 0", "data.workers=0 would have no effect, because data.name=cifar10 has"),
        ("--data.name image_folder --data.image_size 0", "data.image_size must be at least 1, got 0"),
        ("--data.name image_folder --data.workers -1", "data.workers must be at least 0, got -1"),
        ("--data.label_noise 1", "data.label_noise must lie in [0, 1), got 1.0"),
        ("--data.label_noise -0.1", "data.label_noise must lie in [0, 1), got -0.1"),
        ("--data.label_noise much", "data.label_noise: expected"),
        ("--model.name vgg", "model.name=vgg is unknown; choose one of ['simple_cnn', 'wide_mlp', 'plain_cnn', "),
        ("--model.num_refiners 0", "model.num_refiners must be at least 1, got 0"),
        (
            "--parallel.device cpu --compute.tf32 true",
            "compute.tf32=True would have no effect, because parallel.device",
        ),
        ("--model.width 10", "model.width=10 would have no effect, because model.name=simple_cnn has fixed sizes"),
        ("--model.name wide_mlp --model.width 0", "model.width must be at least 1, got 0"),
        ("--parallel.microbatches 0", "parallel.microbatches must be at least 1, got 0"),
        ("--parallel.replicas 0", "parallel.replicas must be at least 1, got 0"),
        ("--method local --parallel.replicas 2", "parallel.replicas=2 would have no effect, because method=local"),
        ("--method ddp --parallel.replicas 2", "parallel.replicas=2 would have no effect, because method=ddp has"),
        ("--method bp --parallel.replicas 2", "parallel.replicas=2 would have no effect, because method=bp cannot"),
        ("--parallel.step_timeout 0", "parallel.step_timeout must be a positive number, got 0.0"),
        ("--parallel.extractor_cost 2", "parallel.extractor_cost=2.0 would have no effect, because only"),
        ("--model.name wide_mlp --compute.channels_last true", "compute.channels_last=True would have no effect"),
        ("--model.name wide_mlp --model.depth 0", "model.depth must be at least 1, got 0"),
        ("--parallel.init_timeout -3", "parallel.init_timeout must be a positive number, got -3.0"),
        ("--objective.alpha 7", "objective.alpha must lie in (0, 1], got 7.0"),
        ("--objective.kl reverse", "set objective.label_smoothing > 0"),
        ("--optim.lr -1 --print_config", "optim.lr must be a positive number"),
        (
            "--parallel.auto true --parallel.extractor root --parallel.schedule fused --parallel.microbatches 1 "
            "--parallel.placement count",
            "parallel.auto=true has nothing to choose",
        ),
        (
            "--parallel.auto true --parallel.placement cost --parallel.costs [1,2]",
            "parallel.costs=[1.0, 2.0] would have no effect, because parallel.auto=true measures the costs",
        ),
        ("--method ddp --parallel.auto true", "parallel.auto=True would have no effect, because method=ddp"),
        ("--method bp --parallel.auto true", "parallel.auto=True would have no effect, because only method=sid"),
        ("--method local --parallel.auto true", "parallel.auto=True would have no effect, because method=local"),
        ("--parallel.weight_prediction true", "parallel.weight_prediction=True would have no effect"),
        ("--parallel.extractor somewhere", "parallel.extractor: expected"),
        (
            "--parallel.costs [1,2]",
            "parallel.costs=[1.0, 2.0] would have no effect, because only parallel",
        ),
        (
            "--method local --parallel.microbatches 2",
            "parallel.microbatches=2 would have no effect, because method",
        ),
        (
            "--method bp --parallel.schedule fused",
            "method=bp does not offer parallel.schedule=fused; choose one of ['naive',",
        ),
        ("--method sid --parallel.schedule gpipe", "method=sid does not offer parallel.schedule=gpipe; choose one of"),
        (
            "--parallel.extractor cut",
            "method=sid does not offer parallel.extractor=cut; choose one of ['replicated', 'root',",
        ),
        (
            "--method bp --parallel.extractor sharded",
            "method=bp does not offer parallel.extractor=sharded; choose one of",
        ),
        ("--method ddp --parallel.schedule gpipe", "parallel.schedule=gpipe would have no effect, because method=ddp"),
        ("--method bp --objective.alpha 0.3", "objective.alpha=0.3 would have no effect, because method=bp has no"),
        ("--method ddp --objective.extractor_update final", "objective.extractor_update=final would have no effect"),
        (
            "--bp.checkpointing true",
            "bp.checkpointing=True would have no effect, because only method=bp and method=ddp read it",
        ),
        ("--model.name plain_cnn", "model.name=plain_cnn has a belief at its end only"),
        ("--method bp --model.name plain_mlp --compute.channels_last true", "compute.channels_last=True would have"),
        ("--method magic", "method=magic is unknown; choose one of ['sid', 'local', 'bp', 'ddp']"),
        ("--config nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_messages(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(flags.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_key_in_yaml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("optim:\n  learning_rate: 0.5\n")
    with pytest.raises(SystemExit):
        parse(["--config", str(file)])
    assert "learning_rate" in capsys.readouterr().err
