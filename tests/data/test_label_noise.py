"""Symmetric label noise."""

import json
from pathlib import Path

import pytest
import torch

from sidpar.data.datasets import load
from sidpar.data.label_noise import move_labels
from sidpar.data.loader import Loader
from tests.training.test_train import SMALL, train

LABELS = torch.arange(10_001) % 10


def test_exactly_the_share_moves_and_each_to_another_class() -> None:
    for share in (0.0, 0.2, 0.77777, 0.999):
        noisy, moved = move_labels(LABELS, 10, share, seed=0)
        different = (noisy != LABELS).nonzero().flatten()
        assert len(different) == round(share * len(LABELS))
        assert torch.equal(different, moved.rows)
        assert torch.equal(moved.old, LABELS[different])
        assert torch.equal(moved.new, noisy[different])
        assert noisy.min() >= 0
        assert noisy.max() <= 9


def test_all_other_classes_are_as_likely() -> None:
    """1,000 at each distance with a deviation of about 30, 900 of each class."""
    moved = move_labels(torch.arange(90_000) % 10, 10, 0.1, seed=0)[1]
    distance = torch.bincount((moved.new - moved.old) % 10, minlength=10)
    assert distance[0] == 0
    assert (distance[1:] - 1000).abs().max() < 150
    assert (torch.bincount(moved.old) - 900).abs().max() < 150
    assert torch.bincount(move_labels(torch.zeros(100).long(), 2, 0.5, seed=0)[0]).tolist() == [50, 50]


def test_the_seed_alone_draws() -> None:
    first, again, other = (move_labels(LABELS, 10, 0.2, seed)[1].rows for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_labels_alone_are_noisy() -> None:
    digits = load("digits")
    noisy = digits.with_label_noise(0.3, seed=1)
    assert noisy.moved is not None
    assert (noisy.train.labels != digits.train.labels).sum() == len(noisy.moved.rows) == round(0.3 * 1437)
    assert torch.equal(noisy.test.labels, digits.test.labels)
    settings = {"batch_size": 2000, "eval_batch_size": 360, "augment": False, "seed": 0}
    pairs = [
        next(Loader(dataset, device=torch.device("cpu"), **settings).train_batches(0)) for dataset in (digits, noisy)
    ]
    assert torch.equal(pairs[0][0], pairs[1][0]), "the images and their order are the same"
    assert (pairs[0][1] != pairs[1][1]).sum() == round(0.3 * 1437)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_message(share: float) -> None:
    with pytest.raises(ValueError, match=r"the share of labels to change must lie in \[0, 1\), got"):
        move_labels(LABELS, 10, share, seed=0)


@pytest.mark.processes
def test_the_run_folder_keeps_what_was_moved(tmp_path: Path) -> None:
    """The same on any number of ranks; a run without noise has no such file."""
    flags = [*SMALL, "--optim.epochs", "1", "--data.label_noise", "0.2"]
    kept = [(train(ranks, tmp_path / str(ranks), *flags) / "label_noise.json").read_text() for ranks in (1, 2)]
    assert kept[0] == kept[1]
    moved = json.loads(kept[0])
    labels = load("digits").train.labels
    assert len(moved["rows"]) == len(moved["new"]) == round(0.2 * 1437)
    assert labels[moved["rows"]].tolist() == moved["old"]
    assert not (train(1, tmp_path / "clean", *SMALL, "--optim.epochs", "1") / "label_noise.json").exists()
