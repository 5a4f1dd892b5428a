"""Training on folders of images through the main job: on any number of ranks, and what ends all ranks alike."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sidpar.distributed.runtime import Runtime
from sidpar.train import parse
from tests.data.image_files import digits_folder, tiny_imagenet_subset
from tests.harness import RankError, make_run, run_ranks
from tests.training.test_train import rows, train, train_by_command
from tests.training.test_train_messages import refusal

pytestmark = pytest.mark.processes

FOLDER = ["--data.name", "image_folder", "--data.image_size", "16", "--data.batch_size", "20"]
NETWORK = ["--model.num_refiners", "2", "--run.log_every", "1", "--optim.warmup_epochs", "0"]


def assert_same_weights(found: Path, expected: Path) -> None:
    tensors = load_file(expected / "weights.safetensors")
    for name, tensor in load_file(found / "weights.safetensors").items():
        assert (tensor - tensors[name]).abs().max() < 1e-4, name


def test_a_folder_trains_on_one_rank_and_on_two(tmp_path: Path) -> None:
    """With workers, with noise; the command ends although its workers leave SIGTERM to others."""
    root = digits_folder(tmp_path / "images")
    flags = [*FOLDER, *NETWORK, "--data.root", str(root), "--optim.epochs", "2", "--data.label_noise", "0.25"]
    alone = train(1, tmp_path / "1", *flags, "--data.workers", "0")
    placed = train_by_command(2, tmp_path / "2", *flags, "--data.workers", "1")
    assert_same_weights(placed, alone)
    assert [row["step"] for row in rows(placed) if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert len(json.loads((placed / "label_noise.json").read_text())["rows"]) == 12


def test_tiny_imagenet_trains_on_one_rank_and_on_two(tiny_imagenet: Path, tmp_path: Path) -> None:
    """64 real images of each of its first two classes, two steps."""
    root = tiny_imagenet_subset(tiny_imagenet, tmp_path, classes=2, train=64)
    flags = ["--data.name", "tiny_imagenet", "--data.root", str(root), "--data.batch_size", "64", *NETWORK]
    flags += ["--model.name", "wide_mlp", "--model.width", "32"]
    folders = [train(ranks, tmp_path / f"run {ranks}", *flags, "--optim.epochs", "1") for ranks in (1, 2)]
    assert_same_weights(*folders)
    assert [row["step"] for row in rows(folders[0]) if row["kind"] == "train"] == [1, 2]


def test_a_folder_that_is_missing_or_broken_on_all_ranks(tmp_path: Path) -> None:
    flags = [*FOLDER, *NETWORK, "--data.workers", "0", "--data.root"]
    assert "has no folder train: image_folder needs" in refusal(tmp_path / "run", *flags, str(tmp_path / "nowhere"))
    root = digits_folder(tmp_path / "images")
    (root / "train" / "digit 3" / "001.png").write_text("?")
    assert "UsageError: " + str(root / "train/digit 3/001.png") in refusal(tmp_path / "run", *flags, str(root))
    assert not (tmp_path / "run").exists()


def on_its_own_disk(runtime: Runtime, base: Path, flags: list[str]) -> None:
    """A rank of another node: the same relative path leads elsewhere."""
    os.chdir(base / str(runtime.rank))
    make_run(parse(flags), runtime)


def refusal_of_nodes(base: Path) -> str:
    """The message of two nodes, whose images lie in base/0 and base/1."""
    flags = [*FOLDER, *NETWORK, "--data.workers", "0", "--data.root", "images", "--run.dir", str(base / "run")]
    with pytest.raises(RankError) as failure:
        run_ranks(on_its_own_disk, 2, base, flags)
    (text,) = {text.splitlines()[-1] for text in failure.value.errors.values()}
    assert set(failure.value.errors) == {0, 1}
    assert not (base / "run").exists()
    return text


def test_what_one_node_lacks_ends_all_ranks(tmp_path: Path) -> None:
    for rank in (0, 1):
        digits_folder(tmp_path / str(rank) / "images", train=3, val=1)
    (tmp_path / "1" / "images" / "train" / "digit 1" / "002.png").unlink()
    assert "the ranks disagree on the dataset; start them all alike. labels (their checksum): rank 0" in (
        text := refusal_of_nodes(tmp_path)
    )
    assert "training images: rank 0 has 12, rank 1 has 11" in text
    (tmp_path / "1" / "images" / "train" / "digit 0" / "001.png").write_text("")
    assert "UsageError: rank 1: images/train/digit 0/001.png cannot be read as an image" in refusal_of_nodes(tmp_path)


def breaks_after_the_start(runtime: Runtime, root: Path, flags: list[str]) -> None:
    run = make_run(parse(flags), runtime)
    runtime.barrier()
    if runtime.rank == 0:
        (root / "train" / "digit 1" / "004.png").write_bytes(b"")
    runtime.barrier()
    run.train()


def test_a_file_that_breaks_in_mid_epoch_ends_all_ranks(tmp_path: Path) -> None:
    root = digits_folder(tmp_path / "images")
    flags = [*FOLDER, *NETWORK, "--data.workers", "1", "--data.root", str(root), "--run.dir", str(tmp_path / "run")]
    with pytest.raises(RankError) as failure:
        run_ranks(breaks_after_the_start, 2, root, flags)
    assert set(failure.value.errors) == {0, 1}
    message = f"UsageError: {root}/train/digit 1/004.png cannot be read as an image"
    assert any(message in text for text in failure.value.errors.values()), failure.value


def test_images_that_the_network_cannot_take(tmp_path: Path) -> None:
    root = digits_folder(tmp_path / "images", train=1, val=1)
    flags = [*FOLDER, *NETWORK, "--data.workers", "0", "--data.root", str(root), "--data.image_size", "2"]
    message = "UsageError: the extractor does not take inputs of shape [B, *[3, 2, 2]]"
    assert message in refusal(tmp_path / "run", *flags)


def test_random_states_stay_where_they_were(tmp_path: Path) -> None:
    """Fork or not, the initial weights of a run are those of its seed."""
    root = digits_folder(tmp_path / "images", train=2, val=1)
    flags = [*FOLDER, *NETWORK, "--data.root", str(root), "--optim.epochs", "0"]
    weights = [
        load_file(train(1, tmp_path / workers, *flags, "--data.workers", workers) / "weights.safetensors")
        for workers in ("0", "2")
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
