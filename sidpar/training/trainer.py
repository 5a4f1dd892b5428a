"""The loop over epochs and steps. It never asks which method runs: an engine fills gradients, the rest is here."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sidpar.config.schema import Config
from sidpar.data.loader import Loader
from sidpar.distributed import device
from sidpar.engines.base import Engine
from sidpar.errors import RunError
from sidpar.runs.checkpoint import Checkpoints, Stored
from sidpar.runs.record import Record
from sidpar.training.meter import DIVERGED, Meter, Stopwatch, per_rank, start_per_rank
from sidpar.training.optim import Optimizers, learning_rate_factor
from sidpar.training.progress import Progress
from sidpar.training.stopping import Stopping
from sidpar.training.training_state import TrainingState

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What training ended with; the same on every rank, but for the times."""

    test: dict[str, Any]
    steps: int
    seconds: float
    images_per_second: float
    peak_memory: list[int]
    resumed_at: list[int]
    """The steps from which the run went on after an interruption."""


class Trainer:
    """Trains one cascade through one engine, and records it in `folder` from rank 0.

    Args:
        stored: the checkpoint to go on from; None to begin.
    """

    def __init__(
        self, engine: Engine, loader: Loader, config: Config, folder: Path, stored: Stored | None = None
    ) -> None:
        stage, self._runtime = engine.stage, engine.stage.runtime
        self._engine = engine
        self._loader = loader
        self._config = config
        self._optimizers = Optimizers(stage.parts(), config.optim, loader.steps_per_epoch)
        self._rate = learning_rate_factor(config.optim, loader.steps_per_epoch)
        self._train_meter, self._test_meter = (Meter(engine) for _ in range(2))
        self._train_watch, self._test_watch = (Stopwatch(self._runtime) for _ in range(2))
        if self._runtime.loads_lazily:
            self._optimizers.rehearse()
            self._train_meter.rehearse()
        self._row: Callable[[], dict[str, Any]] = dict  # begun, and not yet written
        self._state = TrainingState(engine, self._optimizers)
        self._resumed_at: list[int] = []
        keep, asynchronous = config.checkpoint.keep, config.checkpoint.asynchronous
        self._checkpoints = Checkpoints(folder, self._runtime, keep=keep, asynchronous=asynchronous)
        self._saved_at = 0
        if stored is not None:
            self._resume(stored)
        self._record = Record(
            folder,
            enabled=self._runtime.rank == 0,
            after_step=engine.steps,
            tensorboard=config.run.tensorboard,
        )
        self._stopping = Stopping(self._runtime, apart=max(1, config.parallel.staleness or 0))
        self._stops = False
        self._progress = Progress(
            epochs=config.optim.epochs,
            images=loader.num_images,
            steps=loader.steps_per_epoch,
            done=self._train_watch.images,
            eval_every=config.run.eval_every,
            enabled=self._runtime.rank == 0,
        )

    def fit(self) -> Outcome | None:
        """All epochs that are left, with evaluations in between; None if all ranks stopped on request, after a
        checkpoint. Raises RunError, on every rank, where a loss or a weight is no number any more."""
        try:
            return self._fit()
        finally:
            self._progress.close()

    def _fit(self) -> Outcome | None:
        epochs, per_epoch = self._config.optim.epochs, self._loader.steps_per_epoch
        first, test = self._engine.steps // per_epoch, dict[str, Any]()
        if epochs == 0 or (first > 0 and self._engine.steps % per_epoch == 0):
            test = self._evaluate(first)  # a run that was interrupted may not have come to it
        for epoch in range(first, epochs):
            if not self._stops:
                self._train_epoch(epoch)
            if self._checkpoint_is_due() and epoch + 1 < epochs and not self._stops:
                self._save()  # before the evaluation, which may be long
            if not self._stops:
                test = self._evaluate(epoch + 1)
        if self._stops:
            self._save()
        self._stopping.finish()
        self._checkpoints.wait()
        self._record.close()
        if self._stops:
            return None
        watch = self._train_watch
        return Outcome(
            test=test,
            steps=self._engine.steps,
            seconds=watch.seconds,
            images_per_second=watch.images / watch.seconds if watch.seconds else 0.0,
            peak_memory=per_rank(self._runtime, watch.peak_memory),
            resumed_at=self._resumed_at,
        )

    def _train_epoch(self, epoch: int) -> None:
        """The rest of an epoch, unless the ranks stop before its end."""
        per_epoch, first = self._loader.steps_per_epoch, epoch * self._loader.steps_per_epoch
        incoming = self._until_stopped(self._loader.train_batches(epoch, self._engine.steps - first))
        self._train_watch.start()
        while self._engine.steps < first + per_epoch and not self._stops:
            # A stream is drained at the end of each stretch, so that there is a state to save.
            for result in self._engine.train(islice(incoming, self._stretch(first + per_epoch)), self._update):
                self._train_meter.add(result, self._engine.steps)
                if result.diagnosis is not None:
                    self._record.write(
                        {"kind": "diagnosis", "step": self._engine.steps, "epoch": epoch + 1, **result.diagnosis}
                    )
                self._train_watch.images += result.batch_size
                self._progress.pace.trained(self._train_watch.now(), self._train_watch.images)
                self._progress.trained(result.batch_size)
                self._log_training(epoch)
            if self._checkpoint_is_due() and self._engine.steps < first + per_epoch and not self._stops:
                self._save()
        self._train_watch.stop()
        self._finish_row()

    def _until_stopped(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if self._stopping.is_due():
                self._stops = True
                return
            yield batch

    def _stretch(self, end: int) -> int:
        """Steps to the next checkpoint, at most to the end of the epoch."""
        every, left = self._config.checkpoint.every, end - self._engine.steps
        return min(left, every - self._engine.steps % every) if every else left

    def _checkpoint_is_due(self) -> bool:
        """After the step that is done; by default at the end of every epoch, which is where this is asked then."""
        every = self._config.checkpoint.every
        every = self._loader.steps_per_epoch if every is None else every
        return every > 0 and self._engine.steps % every == 0

    def _log_training(self, epoch: int) -> None:
        step = self._engine.steps
        if step % self._config.run.log_every == 0 or step == self._config.optim.epochs * self._loader.steps_per_epoch:
            # Written at the next row or at the end of the epoch: nobody waits here for the ranks behind.
            self._finish_row()
            self._start_training_row(epoch)

    def _start_training_row(self, epoch: int) -> None:
        rate = self._config.optim.lr * self._rate(self._engine.steps - 1)
        self._row = self._start_row("train", epoch + 1, {"learning_rate": rate}, self._train_meter)

    def _update(self, parts: Collection[str]) -> None:
        if self._config.optim.clip is not None:
            self._engine.clip(self._config.optim.clip, parts)
        self._optimizers.update(parts)

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        """After `epoch` epochs, if that is due then; nothing if the ranks stop before its end."""
        if epoch % self._config.run.eval_every and epoch != self._config.optim.epochs:
            return {}
        self._progress.evaluates()
        before = self._test_watch.seconds
        self._test_watch.start()
        for x, y in self._until_stopped(self._loader.test_batches()):
            self._test_meter.add(self._engine.evaluate(x, y), self._engine.steps)
            self._test_watch.images += len(x)
        if self._stops:
            return {}
        self._row = self._start_row("test", epoch, {}, self._test_meter)
        self._test_watch.stop()
        self._progress.pace.evaluated(self._test_watch.seconds - before)
        test = self._finish_row()
        first, last = (100 * test["accuracy"][place] for place in (0, -1))
        _log.info(
            f"{self._progress.epoch(epoch)}  step {self._engine.steps:6d}  test accuracy {last:.2f} %"
            + (f"  (after refiner 1: {first:.2f} %)" if len(test["accuracy"]) > 1 else "")
        )
        return test

    def _save(self) -> None:
        """A checkpoint of now, unless there is one. Of weights that are no numbers there is none."""
        step = self._engine.steps
        if step == self._saved_at:
            return
        self._finish_row()
        bad = not self._state.all_finite()
        if self._runtime.start_request(bad)():
            if not self._train_meter.is_empty:  # a loss was no number before the weights were: it is named
                self._start_training_row((step - 1) // self._loader.steps_per_epoch)
                self._finish_row()
            names = self._runtime.exchange("parts that are no numbers", self._state.not_finite())
            rank = next(rank for rank, parts in enumerate(names) if parts)
            raise self._diverged(f"the weights of {names[rank][0]} (rank {rank}) are not finite after step {step}")
        progress = {
            "step": step,
            "data": self._loader.traits,
            "seconds": self._train_watch.now(),
            "images": self._train_watch.images,
            "resumed_at": self._resumed_at,
        }
        self._checkpoints.save(self._state.tensors(), progress)
        self._saved_at = step

    def _resume(self, stored: Stored) -> None:
        self._state.load(stored)
        progress = stored.progress
        self._saved_at = self._engine.steps
        self._resumed_at = [*progress["resumed_at"], self._engine.steps]
        self._train_watch.resume(progress["seconds"], progress["images"])
        _log.info(f"resumed from step {self._engine.steps}: {stored.path}")

    def _start_row(self, kind: str, epoch: int, known: dict[str, Any], meter: Meter) -> Callable[[], dict[str, Any]]:
        """Begin one row of metrics.jsonl, without waiting for other ranks; all ranks call it."""
        watch = self._train_watch if kind == "train" else self._test_watch
        step, speed = self._engine.steps, watch.lap()
        measures = meter.start_reading()
        memory = start_per_rank(self._runtime, device.peak_memory(self._runtime.device))
        head = {"kind": kind, "step": step, "epoch": epoch, **known}
        return lambda: {**head, **measures(), "images_per_second": speed, "memory_bytes": memory()}

    def _finish_row(self) -> dict[str, Any]:
        """Write the row that was begun, if any; rank 0 does."""
        row, self._row = self._row(), dict
        if row:
            diverged = row.pop(DIVERGED)
            self._record.write(row)
            if diverged is not None:
                step, refiner, rank = diverged["step"], diverged["refiner"], diverged["rank"]
                raise self._diverged(f"the loss of refiner {refiner} (rank {rank}) is not finite at step {step}")
            if row["kind"] == "train":
                self._progress.show(row)
        return row

    def _diverged(self, what: str) -> RunError:
        self._checkpoints.wait()
        newest = self._checkpoints.newest_in_words()
        return RunError(
            f"{what}. {newest}. Lower optim.lr, lengthen optim.warmup_epochs or set optim.clip, in a new run folder"
        )
