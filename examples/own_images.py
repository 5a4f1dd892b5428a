"""Train on a folder of images of your own, then classify one of them.

    python examples/own_images.py FOLDER
    torchrun --standalone --nproc_per_node=2 examples/own_images.py FOLDER

FOLDER holds train/CLASS/... and val/CLASS/...; the images may have any size. Without FOLDER, the script draws discs and
squares into data/shapes and trains on these.
"""

import os
import random
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import sidpar
from sidpar.train import main as train


def draw_shapes(folder: Path) -> None:
    """A small folder of images in the layout that `--data.name image_folder` reads."""
    numbers = random.Random(0)
    for split, count in (("train", 64), ("val", 16)):
        for name in ("disc", "square"):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                image = Image.new("RGB", (40, 32), "white")
                left, top, size = numbers.randint(1, 16), numbers.randint(1, 8), numbers.randint(14, 22)
                draw = ImageDraw.Draw(image)
                shape = draw.ellipse if name == "disc" else draw.rectangle
                shape((left, top, left + size, top + size), fill="black")
                image.save(folder / split / name / f"{k}.png")


def main() -> None:
    """Every rank runs this; torchrun sets RANK."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data/shapes")
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first and len(sys.argv) == 1 and not folder.exists():
        draw_shapes(folder)  # the other ranks wait for this one in `train`
    run = Path("runs") / folder.name
    images = ["--data.name=image_folder", f"--data.root={folder}", "--data.image_size=32", "--data.batch_size=32"]
    train([*images, "--model.num_refiners=4", "--optim.epochs=20", f"--run.dir={run}"])
    if is_first:
        cascade, preprocessing = sidpar.load(run), sidpar.load_preprocessing(run)
        path = min(folder.glob("val/*/*"))
        image = sidpar.read_image(path, preprocessing)  # [3, 32, 32]
        with torch.no_grad():
            beliefs = cascade.beliefs(preprocessing.normalise(image[None]))[:, 0]  # [L + 1, C]: p_0, ..., p_L
        for i, belief in enumerate(beliefs):
            shares = zip(preprocessing.class_names, belief.tolist(), strict=True)
            print(f"{path} after {i} refiners:", ", ".join(f"{name} {100 * p:.1f} %" for name, p in shares))


if __name__ == "__main__":
    main()
