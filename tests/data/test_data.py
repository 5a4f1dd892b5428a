"""Datasets, preprocessing, and batches that depend on (seed, epoch, step) alone."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sidpar.data.augment import count_values, crop_padding, random_crop, random_flip, statistics
from sidpar.data.dataset import Dataset
from sidpar.data.datasets import load
from sidpar.data.loader import Loader
from sidpar.data.preprocessing import Preprocessing
from sidpar.data.splits import Images
from sidpar.errors import UsageError
from sidpar.seeding import generator
from tests.harness import ROOT

SHARED = ROOT.parent / "shared" / "data"


def loader(batch_size: int = 100, *, augment: bool = True, seed: int = 0) -> Loader:
    return Loader(
        load("digits"),
        batch_size=batch_size,
        eval_batch_size=64,
        augment=augment,
        seed=seed,
        device=torch.device("cpu"),
    )


def test_digits() -> None:
    digits = load("digits")
    assert (len(digits.train), len(digits.test), digits.num_classes) == (1437, 360, 10)
    assert digits.image_shape == (1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.images.max() == 16
    assert not digits.flips
    assert torch.bincount(digits.test.labels).min() >= 34, "every class has its share of the test set"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "train", "shape", "classes", "means"),
    [
        ("fashion_mnist", 60_000, (1, 28, 28), 10, [0.2860]),
        ("cifar10", 50_000, (3, 32, 32), 10, [0.49140, 0.48216, 0.44653]),
        ("cifar100", 50_000, (3, 32, 32), 100, [0.50708, 0.48655, 0.44092]),
    ],
)
def test_torchvision_layouts(
    name: str, train: int, shape: tuple[int, ...], classes: int, means: list[float], tmp_path: Path
) -> None:
    """The real data, from the packs beside the checkout."""
    if not SHARED.exists():
        pytest.skip(f"no datasets at {SHARED}")
    subprocess.run([sys.executable, str(SHARED / "realdata.py"), name, str(tmp_path)], check=True, capture_output=True)
    dataset = load(name, str(tmp_path))  # type: ignore[arg-type]
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (train, 10_000, classes)
    assert dataset.image_shape == shape
    assert dataset.flips
    mean, _ = dataset.statistics
    assert (mean.flatten() / 255).tolist() == pytest.approx(means, abs=1e-4)
    shutil.rmtree(tmp_path)


def test_messages(tmp_path: Path) -> None:
    for name in ("fashion_mnist", "cifar10", "cifar100"):
        with pytest.raises(ValueError, match=f"{name} is not in torchvision's layout under data.root=.*set"):
            load(name, str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data.name=mnist is unknown; choose one of"):
        load("mnist")
    with pytest.raises(UsageError, match="data.name=digits does not read data.download: remove it"):
        load("digits", download=True)
    images = Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="the training labels lie in 0..3, but with 3 classes they must lie in 0..2"):
        Dataset(images, images, ("a", "b", "c"), flips=True)


DAMAGES: list[bytes] = [b"\0 no pickle", b"", pickle.dumps({"data": []}), pickle.dumps([1]), b"cos\ngone\n."]


@pytest.mark.parametrize("content", DAMAGES, ids=["zeros", "empty", "no labels", "list", "name"])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    """Of the right names, which is all that is known of them before they are read."""
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python" / name).write_bytes(content)
    message = r"the files of cifar100 under data.root=.* cannot be read \(\w+: .*\): they are damaged; restore them, or"
    with pytest.raises(UsageError, match=message):
        load("cifar100", str(tmp_path))


def test_channel_statistics_are_exact() -> None:
    images = torch.randint(0, 256, (50, 3, 6, 5), dtype=torch.uint8)
    mean, deviation = statistics(count_values(images))
    values = images.double().permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(mean.flatten().double(), values.mean(1))
    assert torch.allclose(deviation.flatten().double(), values.std(1, unbiased=False))


def test_crop_padding_is_the_papers() -> None:
    assert [crop_padding(size) for size in (8, 28, 32, 64)] == [1, 4, 4, 8]


def test_random_crop_shifts_each_image_within_its_padding() -> None:
    """A single bright pixel per image moves by at most the padding, not all alike, and nothing else appears."""
    images = torch.zeros(400, 1, 16, 16, dtype=torch.uint8)
    images[:, 0, 8, 8] = 200
    cropped = random_crop(images, generator("test"))
    assert cropped.shape == images.shape
    assert cropped.dtype == torch.uint8
    assert (cropped.flatten(1).sum(1) == 200).all()
    shifts = cropped.nonzero()[:, 2:] - 8
    assert shifts.abs().max() == crop_padding(16) == 2
    assert len(shifts.unique(dim=0)) == 25, "all shifts occur"


def test_random_crop_pads_with_zeros() -> None:
    cropped = random_crop(torch.full((200, 2, 8, 8), 9, dtype=torch.uint8), generator("test"))
    assert set(cropped.unique().tolist()) == {0, 9}


def test_random_flip_mirrors_half_of_the_images() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4).repeat(400, 1, 1, 1)
    flipped = random_flip(images, generator("test"))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250


def test_an_epoch_covers_the_training_set_once() -> None:
    batches = list(loader(100, augment=False).train_batches(0))
    assert [len(y) for _, y in batches] == [100] * 14 + [37], "the ragged last batch is kept"
    assert loader(100).steps_per_epoch == len(batches)
    labels = torch.cat([y for _, y in batches])
    assert torch.equal(labels.sort().values, load("digits").train.labels.sort().values)
    x = torch.cat([x for x, _ in batches])
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std().item() == pytest.approx(1, abs=1e-3)


def test_order_and_augmentation_depend_on_seed_epoch_and_step_alone() -> None:
    first = list(loader(seed=1).train_batches(3))
    later = list(loader(seed=1).train_batches(3, start=5))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first[5:], later, strict=True))
    torch.rand(5)  # the global generator plays no part
    again = list(loader(seed=1).train_batches(3))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    for other in (loader(seed=2).train_batches(3), loader(seed=1).train_batches(4)):
        assert not torch.equal(first[0][1], next(other)[1])


def test_test_batches_are_in_order_and_not_augmented() -> None:
    batches = list(loader().test_batches())
    assert torch.equal(torch.cat([y for _, y in batches]), load("digits").test.labels)
    assert [len(y) for _, y in batches] == [64] * 5 + [40]
    assert all(x.is_contiguous() for x, _ in batches)


def test_preprocessing_survives_its_text() -> None:
    """What stands beside the weights feeds a network as the loader did, bit for bit."""
    found = loader().preprocessing
    again = Preprocessing.from_json(found.to_json())
    assert again == found
    assert (again.image_shape, again.num_classes, again.white) == ((1, 8, 8), 10, 16)
    x, _ = next(loader().test_batches())
    assert torch.equal(again.normalise(load("digits").test.images[: len(x)]), x)
