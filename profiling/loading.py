"""How many images a second the loader of files makes on 1, 2 and 4 ranks, beside torchvision's own pipeline.

    python profiling/loading.py --out profiling/results/loading.json

Three loaders read the same JPEGs with as many worker processes for each rank: sidpar's with whole batches on every
rank; with the rows alone that a rank of a sharded extractor needs; and torchvision's ImageFolder with its transforms, a
DistributedSampler and a DataLoader. They take turns, so that drift of the machine hits all alike, and ratios are of one
turn. The ranks are processes that compute nothing else. Images per core second count the CPU seconds of ranks and
workers, which other programs on the machine change little; images per second are what ranks get that share its cores.

The photographs are random parts, 500 x 375, of the two that scikit-learn has; `--root` names a folder of others.
"""

import argparse
import gc
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness.conditions import conditions
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from sidpar import Runtime
from sidpar.data.datasets import load
from sidpar.data.loader import Loader
from sidpar.schedules.batching import Share

WAYS = ("whole batches", "rows needed", "torchvision")
SIZES = {"image_folder": 64, "imagenet": 224}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photographs(root: Path, count: int) -> None:
    """train/<photograph>/*.jpg and one test image of each: random parts, of the size that ImageNet's mostly have."""
    draw = torch.Generator().manual_seed(0)
    for label, pixels in enumerate(load_sample_images().images):
        photograph = Image.fromarray(pixels)
        for number in range(count // 2 + 1):
            left, top = (int(torch.randint(0, room + 1, (), generator=draw)) for room in (640 - 500, 427 - 375))
            folder = root / ("train" if number else "val") / f"photograph {label}"
            folder.mkdir(parents=True, exist_ok=True)
            part = photograph.crop((left, top, left + 500, top + 375))
            part.save(folder / f"{number:05}.jpg", quality=90)


def ours(name: str, way: str, rank: int, ranks: int, given: argparse.Namespace) -> Iterator[Any]:
    """An epoch of one rank."""
    dataset = load(name, str(given.root), image_size=SIZES[name], workers=given.workers)
    dataset = replace(dataset, published=([255 * value for value in MEAN], [255 * value for value in DEVIATION]))
    cpu = torch.device("cpu")
    loader = Loader(dataset, batch_size=given.batch, eval_batch_size=1, augment=True, seed=0, device=cpu)
    if way == "rows needed":

        def needed(batch_size: int, *, training: bool) -> Any:
            return Share(batch_size, 1, 0).extracted("sharded", 1, ranks)[rank]

        loader = loader.only(needed)
    return loader.train_batches(0)


def torchvisions(name: str, way: str, rank: int, ranks: int, given: argparse.Namespace) -> Iterator[Any]:
    """The same of torchvision's pipeline."""
    size = SIZES[name]
    shifted = [transforms.Resize(size), transforms.CenterCrop(size), transforms.RandomCrop(size, padding=size // 8)]
    crop = [transforms.RandomResizedCrop(size)] if name == "imagenet" else shifted
    rest = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    folder = ImageFolder(given.root / "train", transforms.Compose([*crop, *rest]))
    sampler: Any = DistributedSampler(folder, ranks, rank)
    return iter(DataLoader(folder, given.batch // ranks, sampler=sampler, num_workers=given.workers))


def rank_main(epoch: Callable[[], Iterator[Any]], ready: Any, results: Any) -> None:
    """One rank: seconds of an epoch, from the listing of the files on, and CPU seconds of the rank and its workers."""
    torch.set_num_threads(1)
    ready.wait()
    start, before = time.perf_counter(), time.process_time()
    for _ in epoch():
        continue
    seconds, own = time.perf_counter() - start, time.process_time() - before
    gc.collect()  # workers are waited for, and their time is known from then on
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    results.put((seconds, own + spent.ru_utime + spent.ru_stime))


def measure(name: str, way: str, ranks: int, given: argparse.Namespace) -> dict[str, float]:
    """One epoch of all ranks at once."""
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(ranks), context.SimpleQueue()
    make = torchvisions if way == "torchvision" else ours
    processes = [
        context.Process(target=rank_main, args=(partial(make, name, way, rank, ranks, given), ready, results))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "images_per_second": given.images / max(seconds for seconds, _ in found),
        "images_per_core_second": given.images / sum(spent for _, spent in found),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def report(given: argparse.Namespace) -> dict[str, Any]:
    """All loaders, in turns."""
    keys = [(name, ranks, way) for name in SIZES for ranks in given.ranks for way in WAYS]
    found: dict[tuple[str, int, str], list[dict[str, float]]] = {key: [] for key in keys}
    for name, ranks, way in [("imagenet", 1, "torchvision"), *keys * given.turns]:
        figures = measure(name, way, ranks, given)
        if len(found[name, ranks, way]) < given.turns:
            found[name, ranks, way].append(figures)
    rows = []
    for name, ranks, way in keys:
        row: dict[str, Any] = {"dataset": name, "image_size": SIZES[name], "ranks": ranks, "loader": way}
        for figure in ("images_per_second", "images_per_core_second"):
            own, others, wholes = (
                [turn[figure] for turn in found[name, ranks, other]] for other in (way, "torchvision", "whole batches")
            )
            row[figure] = spread(own)
            row[f"{figure}_of_torchvisions"] = spread([a / b for a, b in zip(own, others, strict=True)])
            row[f"{figure}_of_whole_batches"] = spread([a / b for a, b in zip(own, wholes, strict=True)])
        rows.append(row)
    settings = {name: getattr(given, name) for name in ("images", "batch", "workers", "turns")}
    environment = conditions(Runtime.single("cpu").device) | {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    return {"environment": environment, "settings": settings | {"photographs": given.what}, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the report as JSON")
    parser.add_argument("--root", type=Path, help="a folder with train/<class>/ and val/<class>/")
    parser.add_argument("--images", type=int, default=640, help="how many to make, where --root is not given")
    parser.add_argument("--batch", type=int, default=64, help="global batch B")
    parser.add_argument("--workers", type=int, default=1, help="of each rank")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        given.what = str(given.root or "500 x 375, JPEG of quality 90")
        if given.root is None:
            given.root = Path(temporary)
            photographs(given.root, given.images)
        given.images = len(list((given.root / "train").glob("*/*")))
        found = report(given)
    for row in found["rows"]:
        of = row["images_per_core_second_of_torchvisions"]["median"]
        whole = row["images_per_second_of_whole_batches"]["median"]
        print(
            f"{row['dataset']:12} {row['ranks']} ranks, {row['loader']:13}: "
            f"{row['images_per_second']['median']:6.0f} images/s ({whole:.2f} of whole batches), "
            f"{row['images_per_core_second']['median']:6.0f} per core second ({of:.2f} of torchvision's)"
        )
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
