"""`python -m sidpar.plot RUN`: what a run has recorded as pictures, also while it runs: curves over steps, accuracy by
depth, and the beliefs about a few test samples. `python -m sidpar.plot RUN RUN...` lays runs over each other."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from sidpar.analysis.samples import find_samples, story, telling
from sidpar.config.command_line import errors_in_one_line
from sidpar.config.console import printing
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError
from sidpar.plots.beliefs import Prediction, draw_predictions
from sidpar.plots.comparison import draw_comparison
from sidpar.plots.curves import draw_curves, draw_depth
from sidpar.plots.pictures import FORMATS, is_picture, save_picture
from sidpar.runs.load import load, load_preprocessing
from sidpar.runs.record_reader import Recorded
from sidpar.training.same_dataset import build_loader, load_dataset

FOLDER = "plots"
_CANDIDATES = 2000
"""Test samples among which those to show are chosen."""
_EACH = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw. A mistake ends the process with exit code 2 and one line that names it."""
    with printing("sidpar.plot"), errors_in_one_line("sidpar.plot"):
        plot(_parser().parse_args(arguments))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "sidpar.plot",
        usage="python -m sidpar.plot RUN [RUN ...] [--out PATH] [--format FORMAT] [--samples INDEX ...]",
        description="Draw what a run has recorded; of several runs, one picture that compares their test accuracy.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="Run folders.")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"Of one run: folder for the pictures; by default RUN/{FOLDER}. Of several runs: a folder, or the file of "
        "the picture (.png, .pdf or .svg); by default comparison.png here.",
    )
    parser.add_argument("--format", choices=FORMATS, help="Of the pictures in a folder; by default png.")
    parser.add_argument(
        "--samples",
        type=int,
        nargs="+",
        metavar="INDEX",
        help="Of one run: test samples whose beliefs are drawn, by their place in the test set; by default two "
        "that are right early, two that are right late, and two that are wrong.",
    )
    return parser


def plot(given: Namespace) -> None:
    """All of it, from the parsed arguments. Raises UsageError, and StorageError."""
    runs = [Recorded.read(folder) for folder in _different(given.runs)]
    if len(runs) == 1:
        _draw_one(runs[0], given)
    else:
        _compare(runs, given)


def _different(folders: Sequence[Path]) -> list[Path]:
    """Each folder once, under the first of its names."""
    first: dict[Path, Path] = {}
    for folder in folders:
        first.setdefault(folder.resolve(), folder)
    return list(first.values())


def _draw_one(run: Recorded, given: Namespace) -> None:
    """All pictures of a run that can be drawn yet, into a folder."""
    if given.samples is not None and min(given.samples) < 0:
        raise UsageError(f"--samples {min(given.samples)} is negative: the test set is numbered from 0")
    out, kind = given.out or run.folder / FOLDER, given.format or "png"
    if is_picture(out):
        raise UsageError(
            f"--out {out} is one picture, but a run has several: give a folder, and the format by "
            f"--format {out.suffix.lower()[1:]}"
        )
    _make(out)
    drawn = [f"curves.{kind}"]
    save_picture(draw_curves(run), out / drawn[0])
    if "test" in run.rows:
        drawn.append(f"depth.{kind}")
        save_picture(draw_depth(run, _num_classes(run)), out / drawn[-1])
    else:
        print(f"no depth.{kind}: {run.name} has no evaluation yet")
    if _draw_beliefs(run, given.samples, out / f"beliefs.{kind}"):
        drawn.append(f"beliefs.{kind}")
    print(f"drawn: {', '.join(drawn)} in {out}")


def _compare(runs: Sequence[Recorded], given: Namespace) -> None:
    """One picture of several runs."""
    if given.samples is not None:
        raise UsageError(f"--samples chooses test samples of one run, but {len(runs)} are compared: remove it")
    without = next((run for run in runs if "test" not in run.rows), None)
    if without is not None:
        every = without.config.run.eval_every
        raise UsageError(
            f"run {without.folder} was never evaluated, so there is nothing to compare: leave it out, or wait for its "
            f"first evaluation (run.eval_every={every} {'epoch' if every == 1 else 'epochs'})"
        )
    path = given.out or Path()
    if not is_picture(path):
        path = path / f"comparison.{given.format or 'png'}"
    elif given.format not in (None, path.suffix.lower()[1:]):
        raise UsageError(f"--out {path} and --format {given.format} contradict each other: remove one")
    _make(path.parent)
    save_picture(draw_comparison(runs, [_num_classes(run) for run in runs]), path)
    print(f"drawn: {path}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be made: {error.strerror}") from error


def _num_classes(run: Recorded) -> int | None:
    """C, which the file of weights tells; None before it is there."""
    try:
        return load_preprocessing(run.folder).num_classes
    except UsageError:
        return None


def _draw_beliefs(run: Recorded, wanted: Sequence[int] | None, path: Path) -> bool:
    """Of a run that is complete; says why not of another one."""
    try:
        cascade = load(run.folder)
        runtime = Runtime.single("cpu")
        loader = build_loader(run.config, load_dataset(run.config, runtime), runtime.device)
    except UsageError as error:
        print(f"no {path.name}: {error}")
        return False
    samples = find_samples(cascade, loader, wanted, _CANDIDATES)
    if wanted is None:
        samples = samples.pick(telling(samples, _EACH))
    mean, deviation = loader.preprocessing.statistics(runtime.device)
    names, images = loader.preprocessing.class_names, (samples.x * deviation + mean) / loader.preprocessing.white
    predictions = [
        Prediction(f"test image {index}\nlabel {names[label]}\n{story(beliefs, label)}", image, beliefs)
        for index, label, image, beliefs in zip(
            samples.indices, samples.labels.tolist(), images, samples.beliefs.unbind(1), strict=True
        )
    ]
    caption = f"run {run.name}: belief p_i after refiner i = 0..{len(samples.beliefs) - 1}; p_0 is uniform"
    draw_predictions(predictions, names, path, top=5, caption=caption)
    return True


if __name__ == "__main__":
    main()
