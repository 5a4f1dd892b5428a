"""A trained cascade from its run folder: the same as what was evaluated, and every folder that holds none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sidpar
from sidpar import UsageError
from sidpar.config.command_line import from_yaml
from sidpar.data import preprocessing
from sidpar.data.datasets import load
from tests.training.test_train import train

SHORT = ["--optim.epochs", "1", "--model.num_refiners", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of four refiners on two ranks."""
    return train(2, tmp_path_factory.mktemp("inference") / "run", *SHORT)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The same run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def accuracies(run: Path) -> list[float]:
    """Of each refiner, on the test set as its dataset has it."""
    cascade, seen = sidpar.load(run), sidpar.load_preprocessing(run)
    assert not any(module.training for module in cascade.modules())
    test = load("digits").test
    with torch.no_grad():
        beliefs = cascade.beliefs(seen.normalise(test.images))
        assert torch.equal(beliefs[-1], cascade(seen.normalise(test.images)))
    return [float((belief.argmax(1) == test.labels).double().mean()) for belief in beliefs[1:]]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (1, ["--model.name", "wide_mlp", "--model.width", "32"]),
        (1, ["--model.name", "plain_cnn", "--method", "bp"]),
        (2, ["--method", "ddp"]),
        (2, ["--model.builder", "tests.own_networks:build", "--model.options.width", "16"]),
    ],
    ids=["wide_mlp", "plain bp", "ddp", "builder"],
)
def test_it_gives_the_accuracy_of_the_summary(ranks: int, flags: list[str], tmp_path: Path) -> None:
    run = train(ranks, tmp_path / "run", *SHORT, *flags)
    summary = json.loads((run / "summary.json").read_text())
    assert accuracies(run) == pytest.approx(summary["refiner_test_accuracy"], abs=1.5 / 360)


@pytest.mark.processes
def test_what_was_trained_on_ranks_is_loaded_whole(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert accuracies(run) == pytest.approx(summary["refiner_test_accuracy"], abs=1.5 / 360)
    cascade, written = sidpar.load(str(run)), load_file(run / "weights.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in cascade.state_dict().items())
    assert next(sidpar.load(run, "meta").parameters()).device.type == "meta"
    seen = sidpar.load_preprocessing(run)
    assert seen == preprocessing.Preprocessing.of(load("digits"))


def refusal(run: Path | str) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(UsageError) as error:
        sidpar.load(run)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_folder_and_no_run(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"there is no run folder {tmp_path}/nowhere"
    assert f"{tmp_path} is not a run folder, it has no config.yaml" in refusal(tmp_path)


@pytest.mark.processes
def test_a_configuration_that_cannot_be_read(copied: Path) -> None:
    (copied / "config.yaml").write_text("model: {depht: 3}\n")
    assert "config.yaml cannot be read: " in refusal(copied)
    assert "depht" in refusal(copied)
    (copied / "config.yaml").write_text("model: {num_refiners: 0}\n")
    assert "config.yaml cannot be read: model.num_refiners must be at least 1, got 0" in refusal(copied)
    (copied / "config.yaml").write_text("model: [\n")
    assert "config.yaml cannot be read: " in refusal(copied)


def test_a_configuration_makes_no_objects(tmp_path: Path) -> None:
    """What jsonargparse would do for a field of type Any: import a class and call it."""
    options = "{thing: {class_path: torch.nn.ReLU}}"
    with pytest.raises(UsageError):
        from_yaml(f"model: {{builder: 'a:b', options: {options}}}")


@pytest.mark.processes
def test_a_run_that_is_not_complete(copied: Path) -> None:
    (copied / "weights.safetensors").unlink()
    assert "is not complete, it has no weights.safetensors: resume it with the command that started it" in refusal(
        copied
    )


@pytest.mark.processes
@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_a_truncated_file(copied: Path, size: int) -> None:
    path = copied / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert f"{path} cannot be read (" in refusal(copied)
    assert "it is truncated, or not a safetensors file" in refusal(copied)


@pytest.mark.processes
def test_a_pickle_is_not_loaded(copied: Path) -> None:
    torch.save({"extractor.0.weight": torch.ones(3)}, copied / "weights.safetensors")
    assert "it is truncated, or not a safetensors file" in refusal(copied)


def rewrite(run: Path, header: dict[str, str] | None) -> None:
    path = run / "weights.safetensors"
    save_file(load_file(path), path, header)


@pytest.mark.processes
def test_a_header_without_preprocessing(copied: Path) -> None:
    for header in (None, {"format": "pt"}):
        rewrite(copied, header)
        assert "its header lacks `preprocessing`, which sidpar.train writes" in refusal(copied)
    for text in ("{", '{"image_shape": [1, 8, 8]}', "3"):
        rewrite(copied, {"preprocessing": text})
        assert "`preprocessing` in its header cannot be read (" in refusal(copied)


@pytest.mark.processes
def test_weights_of_another_network(copied: Path) -> None:
    """The first difference is named, with both shapes, whatever it is."""
    config = (copied / "config.yaml").read_text()
    path = copied / "weights.safetensors"
    whole, header = load_file(path), {"preprocessing": sidpar.load_preprocessing(copied).to_json()}
    (copied / "config.yaml").write_text(config.replace("num_refiners: 4", "num_refiners: 5"))
    more = "refiners.4.layers.0.weight is no such parameter in the file, but [256, 138] in the network"
    assert more in refusal(copied)
    (copied / "config.yaml").write_text(config.replace("num_refiners: 4", "num_refiners: 3"))
    fewer = "refiners.3.layers.0.bias is [256] in the file, but no such parameter in the network"
    assert fewer in refusal(copied)
    (copied / "config.yaml").write_text(config)
    save_file(whole | {"refiners.2.layers.0.weight": torch.zeros(3, 7)}, path, header)
    assert "refiners.2.layers.0.weight is [3, 7] in the file, but [256, 138] in the network" in refusal(copied)
