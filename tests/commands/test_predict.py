"""The program from its command line to what it prints and draws, and how it reads image files."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image as pictures
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import sidpar
from sidpar.data.datasets import load
from sidpar.data.image_file import read_image
from sidpar.data.preprocessing import Preprocessing
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError
from sidpar.plots.beliefs import draw_beliefs, leading_classes
from sidpar.predict import main
from tests.data.image_files import no_room
from tests.training.test_train import job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four refiners after one epoch."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    flags = ["--config", "configs/digits.yaml", "--optim.epochs", "1", "--model.num_refiners", "4"]
    job(Runtime.single("cpu"), [*flags, "--run.dir", str(folder)])
    return folder


@pytest.fixture
def digits(tmp_path: Path) -> list[Path]:
    """Three test images as files."""
    images = load("digits").test.images[:3, 0].int() * 255 // 16
    paths = [tmp_path / f"digit_{k}.png" for k in range(3)]
    for path, values in zip(paths, images, strict=True):
        Image.fromarray(values.byte().numpy()).save(path)
    return paths


def colours(path: Path) -> int:
    return len({tuple(pixel) for row in pictures.imread(path)[::3] for pixel in row[::3]})


@pytest.mark.processes
def test_what_is_printed_and_drawn(run: Path, digits: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), *map(str, digits), "--top", "3"])
    text = capsys.readouterr().out
    cascade, seen = sidpar.load(run), sidpar.load_preprocessing(run)
    with torch.no_grad():
        beliefs = cascade.beliefs(seen.normalise(load("digits").test.images[:3]))
    for k, path in enumerate(digits):
        head, columns, *lines = text.split(f"{path}: ")[1].splitlines()[:7]
        predicted = int(beliefs[-1, k].argmax())
        assert head.startswith(f"{predicted}, ")
        assert columns.split()[:4] == ["belief", "in", "%", str(predicted)]
        assert len(columns.split()) == 3 + 3 + 1, "three classes, and the one that is ahead"
        assert lines[0].split() == ["p_0", "10.0", "10.0", "10.0", "-"]
        for i in range(1, 5):
            name, first, *_, ahead = lines[i].split()
            assert name == f"p_{i}"
            assert float(first) == pytest.approx(100 * beliefs[i, k, predicted].item(), abs=2), "to 8 bits per pixel"
            assert ahead == str(int(beliefs[i, k].argmax()))
    folder = run / "predictions"
    assert sorted(path.name for path in folder.iterdir()) == ["digit_0.png", "digit_1.png", "digit_2.png"]
    assert all(colours(path) > 10 for path in folder.iterdir()), "the pictures are blank"
    assert f"drawn: 3 pictures in {folder}" in text


@pytest.mark.processes
def test_where_it_draws(run: Path, digits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file for all, or a folder, in which images of one name do not overwrite each other."""
    main([str(run), *map(str, digits), "--out", str(tmp_path / "new" / "all.png")])
    assert colours(tmp_path / "new" / "all.png") > 10
    assert f"drawn: {tmp_path}/new/all.png" in capsys.readouterr().out
    main([str(run), *map(str, digits), "--out", str(tmp_path / "all.pdf")])
    assert (tmp_path / "all.pdf").read_bytes().startswith(b"%PDF")
    main([str(run), *map(str, digits[:1] * 3), "--out", str(tmp_path / "folder")])
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == ["digit_0-2.png", "digit_0-3.png", "digit_0.png"]


@pytest.mark.processes
@pytest.mark.parametrize("out", [".", "digit_1.png", "other/../digit_1.png", "hard.png", "links"])
def test_no_image_is_replaced(
    out: str, run: Path, digits: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By whatever name, and nothing is written where one would be."""
    folder = digits[0].parent
    monkeypatch.chdir(folder)
    (folder / "other").mkdir()
    (folder / "hard.png").hardlink_to(digits[1])
    (folder / "links").mkdir()
    (folder / "links" / "digit_1.png").symlink_to(digits[1])
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    with pytest.raises(SystemExit) as ended:
        main([str(run), *(path.name for path in digits), "--out", out])
    assert ended.value.code == 2
    assert re.search(
        r"the picture \S+ would replace the image digit_[01].png: give another --out", capsys.readouterr().err
    )
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before


@pytest.mark.processes
def test_what_fails_later_leaves_no_empty_pictures(
    run: Path, digits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UsageError("later")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "digit_0.png").write_text("of an earlier time")
    monkeypatch.setattr("sidpar.predict.draw_predictions", fail)
    with pytest.raises(SystemExit):
        main([str(run), *map(str, digits), "--out", str(tmp_path / "out")])
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["of an earlier time"]


@pytest.mark.processes
def test_a_full_disk_leaves_no_part_of_a_picture(
    run: Path, digits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_room(), pytest.raises(SystemExit) as ended:
        main([str(run), str(digits[0]), "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"sidpar.predict: error: {tmp_path}/out/digit_0.png cannot be written (File too large): free space there, or "
        "make the folder writable, and start the same command again; what the run folder holds is kept\n"
    )
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.processes
def test_the_name_of_a_file_is_no_formula(run: Path, digits: list[Path], tmp_path: Path) -> None:
    image = digits[0].rename(tmp_path / "cost_$5_$10.png")
    main([str(run), str(image), "--out", str(tmp_path / "out")])
    assert colours(tmp_path / "out" / image.name) > 10


def test_the_classes_that_are_shown() -> None:
    """A favourite that was given up is shown, one that nobody believed in is not; the prediction comes first."""
    beliefs = torch.tensor([[0.2] * 5, [0.7, 0.1, 0.05, 0.05, 0.1], [0.0, 0.6, 0.15, 0.05, 0.2]])
    assert leading_classes(beliefs, 1) == [1]
    assert leading_classes(beliefs, 3) == [1, 4, 0]
    assert leading_classes(beliefs, 9) == [1, 4, 2, 3, 0]
    axes = Figure().add_subplot()
    draw_beliefs(axes, beliefs, ["a", "b", "c", "d", "e"], top=3)
    drawn = {str(line.get_label()).split()[0]: line.get_ydata() for line in axes.get_lines()}
    assert drawn.keys() == {"b", "e", "a", "others"}
    assert np.allclose(drawn["a"], [0.2, 0.7, 0.0])
    assert np.allclose(drawn["others"], [0.4, 0.1, 0.2])


GREY = Preprocessing((1, 4, 6), ("a", "b"), 16, (8.0,), (4.0,))
COLOUR = Preprocessing((3, 4, 6), ("a", "b"), 255, (0.0,) * 3, (1.0,) * 3)


def values(seen: Preprocessing, path: Path) -> Tensor:
    image = read_image(path, seen)
    assert image.shape == seen.image_shape
    return image


def test_images_of_the_right_size_are_untouched(tmp_path: Path) -> None:
    """But for the scale, and grey where the network is grey."""
    pixels = torch.arange(4 * 6 * 3, dtype=torch.uint8).view(4, 6, 3) * 3
    Image.fromarray(pixels.numpy()).save(tmp_path / "colour.png")
    assert torch.equal(values(COLOUR, tmp_path / "colour.png"), pixels.permute(2, 0, 1).float())
    Image.fromarray(pixels[..., 0].numpy()).save(tmp_path / "grey.png")
    assert torch.allclose(values(GREY, tmp_path / "grey.png")[0], pixels[..., 0] * (16 / 255))
    assert torch.equal(values(COLOUR, tmp_path / "grey.png"), pixels[..., 0].float().expand(3, 4, 6))
    red = torch.zeros(4, 6, 3, dtype=torch.uint8)
    red[..., 0] = 255
    Image.fromarray(red.numpy()).save(tmp_path / "red.png")
    assert torch.allclose(values(GREY, tmp_path / "red.png"), torch.tensor(76 * 16 / 255)), "0.299 of white"


def test_other_sizes_are_resized_and_cropped_around_the_centre(tmp_path: Path) -> None:
    """A bright square in the middle of a tall image: top and bottom fall away."""
    pixels = torch.zeros(120, 60, dtype=torch.uint8)
    pixels[50:70, 20:40] = 255
    Image.fromarray(pixels.numpy()).save(tmp_path / "tall.png")
    found = values(GREY, tmp_path / "tall.png")[0]
    assert found[1:3, 2:4].min() > 10
    assert found[[0, 3]].max() < 6
    assert found[:, [0, 5]].max() < 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.png", "there is no image .*nowhere.png"),
        ("text.png", r"text.png cannot be read as an image \(cannot identify image file"),
        ("cut.png", r"cut.png cannot be read as an image \("),
        ("folder", r"folder cannot be read as an image \("),
        ("deep.png", "deep.png has pixels of mode I;16, but they must have 8 bits per channel: convert"),
    ],
)
def test_files_that_are_no_images(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("not an image\n")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    Image.fromarray(np.full((4, 6), 4000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UsageError, match=message):
        read_image(tmp_path / name, GREY)


def test_a_network_for_no_image_file() -> None:
    with pytest.raises(UsageError, match="takes images of 2 channels, but image files have 1 or 3: load them yourself"):
        read_image("any.png", Preprocessing((2, 4, 4), ("a", "b"), 255, (0.0,) * 2, (1.0,) * 2))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere", "{digit}"], "sidpar.predict: error: there is no run folder nowhere"),
        (["{run}"], "the following arguments are required: IMAGE"),
        (["{run}", "nowhere.png"], "sidpar.predict: error: there is no image nowhere.png"),
        (["{run}", "{run}/config.yaml"], "config.yaml cannot be read as an image ("),
        (["{run}", "{digit}", "--top", "0"], "--top must be at least 1, got 0"),
        (["{run}", "{digit}", "--out", "/dev/null/x"], "--out /dev/null/x cannot be written: "),
        (["{run}", *["{digit}"] * 61, "--out", "all.png"], "holds at most 60 images, got 61: give a folder"),
        (
            ["{run}", "{digit}", "--out", "all.jpg"],
            "all.jpg cannot be drawn as .jpg: give a path that ends in .png, .pdf",
        ),
        (["{run}", "{digit}", "--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_messages(
    flags: list[str],
    message: str,
    run: Path,
    digits: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, and one line that says what is wrong."""
    with pytest.raises(SystemExit) as ended:
        main([flag.format(run=run, digit=digits[0]) for flag in flags])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out
