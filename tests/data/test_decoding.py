"""Files to pixels."""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.transforms import v2

from sidpar.data.decoding import Paths, decode, decode_part, random_part, read_images
from sidpar.data.image_file import read_image
from sidpar.data.preprocessing import Preprocessing


def save(path: Path, pixels: object, mode: str | None = None) -> str:
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(path)
    return str(path)


def test_pixels_of_an_image_of_the_right_size_are_untouched(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    paths = [save(tmp_path / "a.png", pixels), save(tmp_path / "b.png", pixels.flip(0))]
    for exact in (True, False):
        images = read_images(paths, 16, exact=exact)
        assert images.dtype == torch.uint8
        assert torch.equal(images, torch.stack([pixels, pixels.flip(0)]).permute(0, 3, 1, 2))


def test_the_square_in_the_middle_is_resized(tmp_path: Path) -> None:
    """A wide and a high image: each quarter keeps its brightness, and what lies beside the square touches its outermost
    pixels alone, as it does where an image is resized first and cropped then."""
    pixels = np.full((40, 100), 255)
    pixels[:20, 30:50], pixels[:20, 50:70], pixels[20:, 30:50], pixels[20:, 50:70] = 10, 60, 110, 160
    for name, turned in (("wide.png", pixels), ("high.png", pixels.T)):
        (image,) = read_images([save(tmp_path / name, turned)], 8)
        assert image.shape == (3, 8, 8)
        quarters = image[0].T if name == "high.png" else image[0]  # as in the wide one
        assert [int(quarters[y, x]) for y in (1, 6) for x in (1, 6)] == [10, 60, 110, 160]
        assert quarters[:, 1:-1].max() <= 160


def test_small_images_grow_and_large_jpegs_shrink(tmp_path: Path) -> None:
    """A JPEG that is decoded at a fraction of its size looks as if it were resized from all of it."""
    ramp = np.linspace(0, 255, 640, dtype=np.uint8)[None].repeat(640, 0)
    Image.fromarray(ramp).save(tmp_path / "large.jpg", quality=95)
    large, small = read_images([str(tmp_path / "large.jpg"), save(tmp_path / "small.png", ramp[:4, ::160])], 32)
    expected = torch.linspace(4, 251, 32)
    assert (large.float() - expected).abs().max() < 4
    assert small[0, 0, 0] == 0
    assert small[0, 0, -1] == ramp[0, 480]


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3))
    pixels[:, 4:] = 255
    (image,) = read_images([save(tmp_path / "a.png", pixels, mode)], 8)
    assert torch.equal(image, torch.from_numpy(pixels).to(torch.uint8).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("transparency", [7, bytes(range(0, 256))], ids=["one", "each"])
def test_transparent_colours_of_a_palette_are_seen(
    mode: Literal["L", "RGB"], transparency: int | bytes, tmp_path: Path
) -> None:
    """As they are without transparency, and nothing is said about them on the console."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "transparent.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, transparent = (
            decode(str(tmp_path / f"{name}.png"), mode, (16, 16)) for name in ("plain", "transparent")
        )
    assert torch.equal(transparent, plain)
    assert torch.equal(plain, torch.from_numpy(np.array(image.convert(mode))).view(16, 16, -1).permute(2, 0, 1))


def oriented(path: Path, upright: Image.Image, orientation: int) -> str:
    """A file that shows `upright` to those who follow its EXIF data, and its pixels otherwise to others."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    upright.transpose(turn).save(path, exif=exif)
    return str(path)


def test_images_are_held_as_their_exif_data_say(tmp_path: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8))
    upright.save(tmp_path / "upright.png")
    paths = [oriented(tmp_path / f"{n}.png", upright, n) for n in range(2, 9)]
    expected, *found = read_images([str(tmp_path / "upright.png"), *paths], 16)
    assert all(torch.equal(image, expected) for image in found)


def test_exif_data_that_cannot_be_read_do_not_matter(tmp_path: Path) -> None:
    """Photographs with such data are common, and their pixels are whole."""
    image = Image.fromarray(np.full((8, 8, 3), 100, dtype=np.uint8))
    image.save(tmp_path / "odd.png", exif=b"Exif\0\0 no TIFF header")
    with pytest.raises(SyntaxError), Image.open(tmp_path / "odd.png") as file:
        file.getexif()
    assert (read_images([str(tmp_path / "odd.png")], 8) == 100).all()


def test_one_image_is_read_as_training_reads_it(tmp_path: Path) -> None:
    """What `predict` shows a network, and what `image_folder` has shown it: photographs on their sides, large, small,
    of odd sizes."""
    y, x = np.mgrid[:481, :643]
    photograph = Image.fromarray(np.stack([x % 256, y % 256, (x + y) // 5 % 256], -1).astype(np.uint8))
    paths = [oriented(tmp_path / "side.jpg", photograph, 6), str(tmp_path / "large.jpg"), str(tmp_path / "small.jpg")]
    photograph.save(paths[1])
    photograph.resize((17, 40)).save(paths[2])
    seen = Preprocessing((3, 32, 32), ("a", "b"), 255, (0.0,) * 3, (1.0,) * 3)
    images = read_images(paths, 32)
    assert all(torch.equal(read_image(path, seen), image.float()) for path, image in zip(paths, images, strict=True))
    assert (images[0].float() - images[1].float()).abs().mean() < 4, "the same photograph"


def test_less_than_all_of_an_image_may_be_shown(tmp_path: Path) -> None:
    """The middle of a wide and a high one: as torchvision's Resize(256) and CenterCrop(224) show it, to rounding."""
    y, x = np.mgrid[:60, :80]
    picture = Image.fromarray(np.stack([3 * x, 4 * y, x + y], -1).astype(np.uint8))
    for name, image in (("wide.png", picture), ("high.png", picture.transpose(Image.Transpose.TRANSPOSE))):
        image.save(tmp_path / name)
        (found,) = read_images([str(tmp_path / name)], 28, share=28 / 32)
        usual = v2.functional.center_crop(v2.functional.resize(v2.functional.pil_to_tensor(image), 32), [28, 28])
        assert (found.float() - usual.float()).abs().max() <= 2
        (all_of_it,) = read_images([str(tmp_path / name)], 28)
        assert (all_of_it.float() - usual.float()).abs().mean() > 4


def test_random_parts_are_the_usual_ones() -> None:
    """Those of torchvision's RandomResizedCrop, as far as their distribution tells: places, areas and ratios."""
    for width, height in ((500, 375), (64, 64), (30, 400)):
        found = torch.tensor([random_part(width, height, seed) for seed in range(3000)]).double()
        size = (found[:, 2:] - found[:, :2]).T
        area, ratio = size[0] * size[1] / (width * height), size[0] / size[1]
        assert (found >= 0).all()
        assert (found[:, 2:] <= torch.tensor([width, height])).all()
        torch.manual_seed(0)
        image = torch.empty(1, height, width)
        usual = torch.tensor([v2.RandomResizedCrop(1).make_params([image])["height"] for _ in range(3000)]).double()
        assert size[1].mean() == pytest.approx(float(usual.mean()), rel=0.03)
        assert size[1].std() == pytest.approx(float(usual.std()), rel=0.08)
        if (width, height) != (30, 400):  # of which no part is as wide as it is high, if not a small one
            assert 0.07 < area.min() < 0.12
            assert area.max() > 0.95
            assert ratio.min() < 0.8
            assert ratio.max() > 1.25
            assert ((size[0] - 0.5) / (size[1] + 0.5)).max() <= 4 / 3, "to half a pixel"
            assert ((size[0] + 0.5) / (size[1] - 0.5)).min() >= 3 / 4
    assert random_part(500, 375, 7) == random_part(500, 375, 7) != random_part(500, 375, 8)


def test_a_random_part_is_cut_out_of_the_whole(tmp_path: Path) -> None:
    """Of a small file, of a JPEG that is decoded at a fraction of its size, of a photograph on its side."""
    y, x = np.mgrid[:900, :1200]
    photograph = Image.fromarray(np.stack([x // 5, y // 4, (x + y) // 9], -1).astype(np.uint8))
    photograph.save(tmp_path / "large.jpg", quality=95)
    photograph.resize((120, 90)).save(tmp_path / "small.png")
    for name, seed in [(name, seed) for name in ("large.jpg", "small.png") for seed in range(8)]:
        found = decode_part(str(tmp_path / name), 16, seed)
        with Image.open(tmp_path / name) as image:
            box = random_part(*image.size, seed)
            expected = image.crop(box).resize((16, 16), Image.Resampling.BILINEAR)
        difference = found.permute(1, 2, 0).float() - torch.from_numpy(np.array(expected)).float()
        assert difference.abs().max() < 6
    side = decode_part(oriented(tmp_path / "side.png", photograph.resize((120, 90)), 6), 16, 3)
    assert (side[0].float().diff(dim=1).mean(), side[1].float().diff(dim=0).mean()) > (0, 0), "upright"


def test_messages(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    whole = save(tmp_path / "whole.png", torch.randint(0, 256, (64, 64, 3)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
    for name, message in {
        "text.png": r"text.png cannot be read as an image \(cannot identify image .*\): replace, repair or remove it",
        "cut.png": r"cut.png cannot be read as an image \(.*truncated.*\): replace, repair or remove it",
        "gone.png": r"gone.png cannot be read as an image \(.*No such file.*\)",
        "deep.png": "deep.png has pixels of mode I;16, but they must have 8 bits per channel: convert the image",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_images([whole, str(tmp_path / name)], 64)
    with pytest.raises(ValueError, match="whole.png has 64 x 64 pixels, but these images must have 32 x 32"):
        read_images([whole], 32, exact=True)


def test_paths_give_back_what_they_got() -> None:
    names = ["a/b.png", "", "ä/ß.jpg", b"\xff.png".decode(errors="surrogateescape")]
    assert list(Paths(names)) == names
    assert len(Paths([])) == 0
