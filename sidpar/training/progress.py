"""What the console shows while a run trains: on a terminal a progress bar, elsewhere a line per log interval."""

import logging
import sys
from typing import Any

from tqdm import tqdm

from sidpar.config.units import human_duration
from sidpar.training.pace import Pace

_log = logging.getLogger(__name__)


class Progress:
    """Of rank 0; the other ranks show nothing.

    Args:
        epochs: of the whole run.
        images: of the training set.
        steps: per epoch.
        done: the images of the run that an earlier process has trained on.
        eval_every: epochs between evaluations.
    """

    def __init__(self, *, epochs: int, images: int, steps: int, done: int, eval_every: int, enabled: bool) -> None:
        self._epochs, self._images, self._steps, self._eval_every = epochs, images, steps, eval_every
        self._done, self._enabled = done, enabled
        self._loss, self._said = "", False
        self.pace = Pace()
        self._bar: tqdm[Any] | None = None
        if enabled and sys.stderr.isatty() and epochs > 0:
            form = "{desc} |{bar}| {percentage:3.0f} %"
            total = epochs * images
            self._bar = tqdm(total=total, initial=done, bar_format=form, dynamic_ncols=True, leave=False)
            self._bar.set_description_str(self._epoch_of(done))

    def trained(self, batch_size: int) -> None:
        """One batch more."""
        self._done += batch_size
        if self._bar is not None:
            self._bar.set_description_str(self._description(), refresh=False)
            self._bar.update(batch_size)

    def show(self, row: dict[str, Any]) -> None:
        """A training row of metrics.jsonl, once it is known."""
        if not self._enabled:
            return
        self._loss = f"loss {row['loss'][-1]:.3g}"
        if not self._said and self.pace.is_known:
            self._said = True
            epoch = self.pace.seconds_for(self._images)
            _log.info(
                f"by the first steps: {human_duration(epoch / self._steps)} a step, {human_duration(epoch)} an epoch, "
                f"{self._left(self._done)} left"
            )
        if self._bar is None:
            speed = f"{row['images_per_second']:.0f} images/s"
            done = row["step"] * self._images // self._steps  # the row may be of some steps ago
            left = f"  {self._left(done)} left" if self.pace.is_known else ""
            head = f"{self.epoch(row['epoch'])}  step {row['step']:6d}"
            _log.info(f"{head}  train {self._loss}  {speed}{left}")

    def epoch(self, number: int) -> str:
        """Of all: `epoch  7/50`."""
        return f"epoch {number:{len(str(self._epochs))}d}/{self._epochs}"

    def evaluates(self) -> None:
        """An evaluation begins."""
        if self._bar is not None:
            self._bar.set_description_str(f"{self._epoch_of(self._done - 1)}  evaluation")

    def close(self) -> None:
        """The bar leaves the terminal."""
        if self._bar is not None:
            self._bar.close()

    def _description(self) -> str:
        parts = [self._epoch_of(self._done - 1)]
        if self.pace.is_known:
            parts += [f"{self.pace.images_per_second:.0f} images/s", f"{self._left(self._done)} left"]
        return "  ".join([*parts, *([self._loss] if self._loss else [])])

    def _epoch_of(self, image: int) -> str:
        return self.epoch(min(image // self._images + 1, self._epochs))

    def _left(self, done: int) -> str:
        """Time to the end of the run, after so many images of it."""
        before = done // self._images // self._eval_every
        evaluations = -(-self._epochs // self._eval_every) - before
        return human_duration(self.pace.seconds_for(self._epochs * self._images - done, evaluations))
