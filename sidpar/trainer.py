"""The loop over epochs and steps. It never asks which method runs: an engine fills gradients, the rest is here."""

import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sidpar import device
from sidpar.config import Config
from sidpar.data.loader import Loader
from sidpar.engines import Engine
from sidpar.meter import Meter, Stopwatch, per_rank, start_per_rank
from sidpar.optim import Optimizers, learning_rate_factor
from sidpar.record import Record


@dataclass(frozen=True)
class Outcome:
    """What training ended with; the same on every rank."""

    test: dict[str, Any]
    steps: int
    seconds: float
    images_per_second: float
    peak_memory: list[int]


class Trainer:
    """Trains one cascade through one engine, and records it in `folder` from rank 0."""

    def __init__(self, engine: Engine, loader: Loader, config: Config, folder: Path) -> None:
        stage = engine.stage
        self._engine = engine
        self._loader = loader
        self._config = config
        self._runtime = stage.runtime
        self._record = Record(folder, enabled=stage.runtime.rank == 0, tensorboard=config.run.tensorboard)
        self._optimizers = Optimizers(stage.parts(), config.optim, loader.steps_per_epoch)
        self._rate = learning_rate_factor(config.optim, loader.steps_per_epoch)
        self._train_meter, self._test_meter = (Meter(engine) for _ in range(2))
        self._train_watch, self._test_watch = (Stopwatch(stage.runtime) for _ in range(2))
        self._row: Callable[[], dict[str, Any]] = dict  # begun, and not yet written
        self._progress = stage.runtime.rank == 0 and sys.stderr.isatty()

    def fit(self) -> Outcome:
        """All epochs, with evaluations in between."""
        epochs = self._config.optim.epochs
        test = self._evaluate(0) if epochs == 0 else {}
        for epoch in range(epochs):
            self._train_epoch(epoch)
            done = epoch + 1
            if done % self._config.run.eval_every == 0 or done == epochs:
                test = self._evaluate(done)
        self._record.close()
        watch = self._train_watch
        return Outcome(
            test=test,
            steps=self._engine.steps,
            seconds=watch.seconds,
            images_per_second=watch.images / watch.seconds if watch.seconds else 0.0,
            peak_memory=per_rank(self._runtime, watch.peak_memory),
        )

    def _train_epoch(self, epoch: int) -> None:
        batches: Iterable[Any] = self._loader.train_batches(epoch)
        if self._progress:
            batches = tqdm(batches, desc=f"epoch {epoch + 1}", total=self._loader.steps_per_epoch, leave=False)
        last_step = self._config.optim.epochs * self._loader.steps_per_epoch
        self._train_watch.start()
        for result in self._engine.train(batches, self._update):
            self._train_meter.add(result)
            if result.diagnosis is not None:
                self._record.write(
                    {"kind": "diagnosis", "step": self._engine.steps, "epoch": epoch + 1, **result.diagnosis}
                )
            self._train_watch.images += result.batch_size
            if self._engine.steps % self._config.run.log_every == 0 or self._engine.steps == last_step:
                rate = self._config.optim.lr * self._rate(self._engine.steps - 1)
                # Written at the next row or at the end of the epoch: nobody waits here for the ranks behind.
                self._finish_row()
                self._row = self._start_row("train", epoch + 1, {"learning_rate": rate}, self._train_meter)
        self._train_watch.stop()
        self._finish_row()

    def _update(self, parts: Collection[str]) -> None:
        if self._config.optim.clip is not None:
            self._engine.clip(self._config.optim.clip, parts)
        self._optimizers.update(parts)

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        self._test_watch.start()
        for x, y in self._loader.test_batches():
            self._test_meter.add(self._engine.evaluate(x, y))
            self._test_watch.images += len(x)
        self._row = self._start_row("test", epoch, {}, self._test_meter)
        self._test_watch.stop()
        test = self._finish_row()
        if self._runtime.rank == 0:
            accuracies = " ".join(f"{100 * accuracy:.1f}" for accuracy in test["accuracy"])
            tqdm.write(
                f"epoch {epoch:3d}  step {self._engine.steps:6d}  test accuracy {100 * test['accuracy'][-1]:.2f} %"
                f"  (by refiner: {accuracies})"
            )
        return test

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
            self._record.write(row)
        return row
