"""`python -m sidpar.plot RUN...`: what runs have recorded as pictures, also while they run: curves over steps, accuracy
by depth, and the beliefs about a few test samples."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from sidpar.analysis.samples import find_samples, story, telling
from sidpar.config.command_line import errors_in_one_line
from sidpar.config.console import printing
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError
from sidpar.plots.beliefs import Prediction, draw_predictions
from sidpar.plots.curves import draw_curves, draw_depth, label_of
from sidpar.plots.pictures import free_name, save_picture
from sidpar.runs.load import load, load_preprocessing
from sidpar.runs.record_reader import Recorded
from sidpar.training.same_dataset import build_loader, load_dataset

FOLDER = "plots"
_CANDIDATES = 2000
"""Test samples among which the telling ones are looked for."""
_EACH = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw. A mistake ends the process with exit code 2 and one line that names it."""
    with printing("sidpar.plot"), errors_in_one_line("sidpar.plot"):
        plot(_parser().parse_args(arguments))


def _parser() -> ArgumentParser:
    parser = ArgumentParser("sidpar.plot", description="Draw what runs have recorded.")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="Run folders; several are compared, each once."
    )
    parser.add_argument("--out", type=Path, help=f"Folder for the pictures; by default RUN/{FOLDER}.")
    parser.add_argument(
        "--samples",
        type=int,
        nargs="+",
        metavar="INDEX",
        help="Test samples whose beliefs are drawn, by their place in the test set; by default a few telling ones.",
    )
    return parser


def plot(given: Namespace) -> None:
    """All of it, from the parsed arguments. Raises UsageError, and StorageError."""
    runs = [Recorded.read(folder) for folder in _different(given.runs)]
    if given.samples is not None and min(given.samples) < 0:
        raise UsageError(f"--samples {min(given.samples)} is negative: the test set is numbered from 0")
    out = _folder(given.out, runs)
    save_picture(draw_curves(runs), out / "curves.png")
    drawn = ["curves.png"]
    without = [run.name for run in runs if "test" not in run.rows]
    if without:
        print(f"no depth.png: {', '.join(without)} has no evaluation yet")
    else:
        save_picture(draw_depth(runs, [_num_classes(run) for run in runs]), out / "depth.png")
        drawn.append("depth.png")
    drawn += _draw_beliefs(runs, given.samples, out)
    print(f"drawn: {', '.join(drawn)} in {out}")


def _different(folders: Sequence[Path]) -> list[Path]:
    """Each folder once, under the first of its names."""
    first: dict[Path, Path] = {}
    for folder in folders:
        first.setdefault(folder.resolve(), folder)
    return list(first.values())


def _folder(wanted: Path | None, runs: Sequence[Recorded]) -> Path:
    if wanted is None and len(runs) > 1:
        raise UsageError(f"{len(runs)} runs are compared in pictures that belong to none of them: give --out")
    out = wanted or runs[0].folder / FOLDER
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made: {error.strerror}") from error
    return out


def _num_classes(run: Recorded) -> int | None:
    """C, which the file of weights tells; None before it is there."""
    try:
        return load_preprocessing(run.folder).num_classes
    except UsageError:
        return None


def _draw_beliefs(runs: Sequence[Recorded], wanted: Sequence[int] | None, out: Path) -> list[str]:
    """One picture for each run that is complete; runs on one dataset show the same samples. The pictures' names."""
    drawn: list[str] = []
    chosen: dict[tuple[str, str | None], list[int]] = {}
    for run in runs:
        data = run.config.data.name, run.config.data.root
        label = label_of(run, runs).strip("/").replace("/", "-")
        name = "beliefs.png" if len(runs) == 1 else free_name(f"beliefs-{label}", drawn)
        try:
            cascade = load(run.folder)
            runtime = Runtime.single("cpu")
            loader = build_loader(run.config, load_dataset(run.config, runtime), runtime.device)
        except UsageError as error:
            print(f"no {name}: {error}")
            continue
        samples = find_samples(cascade, loader, wanted or chosen.get(data), _CANDIDATES)
        if wanted is None and data not in chosen:
            samples = samples.pick(telling(samples, _EACH))
            chosen[data] = samples.indices
        mean, deviation = loader.preprocessing.statistics(runtime.device)
        names, images = loader.preprocessing.class_names, (samples.x * deviation + mean) / loader.preprocessing.white
        predictions = [
            Prediction(f"test image {index}\nlabel {names[label]}\n{story(beliefs, label)}", image, beliefs)
            for index, label, image, beliefs in zip(
                samples.indices, samples.labels.tolist(), images, samples.beliefs.unbind(1), strict=True
            )
        ]
        caption = f"run {run.name}: belief p_i after refiner i = 0..{len(samples.beliefs) - 1}; p_0 is uniform"
        draw_predictions(predictions, names, out / name, top=5, caption=caption)
        drawn.append(name)
    return drawn


if __name__ == "__main__":
    main()
