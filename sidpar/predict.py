"""`python -m sidpar.predict RUN IMAGE...`: the class of each image, and how the belief in it evolves."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from sidpar.config.command_line import errors_in_one_line
from sidpar.config.console import printing
from sidpar.config.groups.checks import at_least
from sidpar.data.image_file import read_image
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError
from sidpar.plots.beliefs import Prediction, draw_predictions, leading_classes
from sidpar.plots.pictures import free_name, is_picture
from sidpar.runs.load import load, load_preprocessing

FOLDER = "predictions"
MAX_IMAGES = 60
"""Images in one picture."""
_BATCH = 256


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and draw. A mistake ends the process with exit code 2 and one line that names it."""
    with printing("sidpar.predict"), errors_in_one_line("sidpar.predict"):
        predict(_parser().parse_args(arguments))


def _parser() -> ArgumentParser:
    parser = ArgumentParser("sidpar.predict", description="Classify images by a trained cascade, refiner by refiner.")
    parser.add_argument("run", type=Path, metavar="RUN", help="Run folder.")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="Image files.")
    parser.add_argument("--top", type=int, default=5, help="How many classes to show; by default 5.")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"One picture of all images, which ends in .png, .pdf or .svg; or a folder, by default RUN/{FOLDER}.",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu", help="By default cpu.")
    return parser


def predict(given: Namespace) -> None:
    """All of it, from the parsed arguments. Raises UsageError, and StorageError."""
    at_least("--top", given.top, 1)
    preprocessing = load_preprocessing(given.run)
    device = Runtime.single(given.device).device
    images = torch.stack([read_image(path, preprocessing) for path in given.images])
    cascade = load(given.run, device)
    pictures = _pictures(given)
    with torch.no_grad():
        beliefs = torch.cat(
            [cascade.beliefs(preprocessing.normalise(x.to(device))).cpu() for x in torch.split(images, _BATCH)], 1
        )
    predictions = [
        Prediction(path.name, image / preprocessing.white, beliefs[:, k])
        for k, (path, image) in enumerate(zip(given.images, images, strict=True))
    ]
    for path, prediction in zip(given.images, predictions, strict=True):
        print(table(str(path), prediction.beliefs, preprocessing.class_names, given.top))
    for path, chosen in pictures.items():
        shown = [predictions[k] for k in chosen]
        caption = f"run {given.run.resolve().name}: belief p_i after refiner i = 0..{len(beliefs) - 1}; p_0 is uniform"
        draw_predictions(shown, preprocessing.class_names, path, top=given.top, caption=caption)
    first = next(iter(pictures))
    print(f"drawn: {first if len(pictures) == 1 else f'{len(pictures)} pictures in {first.parent}'}")


def table(name: str, beliefs: torch.Tensor, class_names: Sequence[str], top: int) -> str:
    """The leading classes' beliefs in percent, p_0..p_L [L + 1, C] line by line, and the class that is ahead."""
    leading = leading_classes(beliefs, top)
    widths = [max(5, len(class_names[c])) for c in leading]
    heads = "  ".join(f"{class_names[c]:>{width}}" for c, width in zip(leading, widths, strict=True))
    lines = [
        f"{name}: {class_names[leading[0]]}, {100 * float(beliefs[-1, leading[0]]):.1f} %",
        f"  belief in %  {heads}  ahead",
    ]
    for i, belief in enumerate(beliefs):
        cells = "  ".join(f"{100 * float(belief[c]):>{width}.1f}" for c, width in zip(leading, widths, strict=True))
        ahead = class_names[int(belief.argmax())] if i else "-"
        lines.append(f"  {f'p_{i}':>11}  {cells}  {ahead}")
    return "\n".join(lines)


def _pictures(given: Namespace) -> dict[Path, list[int]]:
    """Which images each picture shows; makes the folder. Raises UsageError if one is an image or unwritable."""
    out = given.out or given.run / FOLDER
    if is_picture(out):
        if len(given.images) > MAX_IMAGES:
            raise UsageError(
                f"--out {out} is one picture, which holds at most {MAX_IMAGES} images, got {len(given.images)}: "
                "give a folder"
            )
        folder, pictures = out.parent, {out: list(range(len(given.images)))}
    else:
        names: dict[str, list[int]] = {}
        for k, image in enumerate(given.images):
            names[free_name(image.stem, names)] = [k]  # there may be images of one name from several folders
        folder, pictures = out, {out / name: chosen for name, chosen in names.items()}
    try:
        _spare(given.images, pictures)
        folder.mkdir(parents=True, exist_ok=True)
        for path in pictures:
            _check_writable(path.resolve())
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error}") from error
    return pictures


def _spare(images: Sequence[Path], pictures: Iterable[Path]) -> None:
    """Raises UsageError if a picture would replace an image, by whatever name or link."""
    files = {(found.st_dev, found.st_ino): image for image in images for found in [image.stat()]}
    for path in pictures:
        found = path.stat() if path.exists() else None
        if found and (image := files.get((found.st_dev, found.st_ino))):
            raise UsageError(f"the picture {path} would replace the image {image}: give another --out")


def _check_writable(path: Path) -> None:
    """Raises OSError if it is not. Leaves what is there, and no file where there is none."""
    existed = path.exists()
    path.open("ab").close()
    if not existed:
        path.unlink()


if __name__ == "__main__":
    main()
