"""The loop over epochs and steps. It never asks which method runs: an engine fills gradients, the rest is here."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sidpar import device
from sidpar.config import Config
from sidpar.data.loader import Loader
from sidpar.engines import Engine
from sidpar.meter import Meter, Stopwatch, per_rank
from sidpar.objective import Objective
from sidpar.optim import build_optimizer, build_scheduler, clip_parts
from sidpar.run_folder import append_metrics
from sidpar.runtime import Runtime


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

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        loader: Loader,
        config: Config,
        runtime: Runtime,
        folder: Path,
    ) -> None:
        stage = engine.stage
        self._engine, self._loader, self._config, self._runtime, self._folder = (
            engine,
            loader,
            config,
            runtime,
            folder,
        )
        self._optimizer = build_optimizer(stage.parameters(), config.optim)
        self._scheduler = build_scheduler(self._optimizer, config.optim, loader.steps_per_epoch)
        self._parts = list(stage.parts().values())
        self._train_meter, self._test_meter = (
            Meter(runtime, objective, stage.placement.num_refiners, stage.num_classes) for _ in range(2)
        )
        self._stopwatch = Stopwatch(runtime)
        self._progress = runtime.rank == 0 and sys.stderr.isatty()

    def fit(self) -> Outcome:
        """All epochs, with evaluations in between."""
        epochs = self._config.optim.epochs
        test = self._evaluate(0) if epochs == 0 else {}
        for epoch in range(epochs):
            self._train_epoch(epoch)
            done = epoch + 1
            if done % self._config.run.eval_every == 0 or done == epochs:
                test = self._evaluate(done)
        seconds, images = self._stopwatch.seconds, self._stopwatch.images
        return Outcome(
            test=test,
            steps=self._engine.steps,
            seconds=seconds,
            images_per_second=images / seconds if seconds else 0.0,
            peak_memory=per_rank(self._runtime, self._stopwatch.peak_memory),
        )

    def _train_epoch(self, epoch: int) -> None:
        batches: Iterable[Any] = self._loader.train_batches(epoch)
        if self._progress:
            batches = tqdm(batches, desc=f"epoch {epoch + 1}", total=self._loader.steps_per_epoch, leave=False)
        self._stopwatch.start()
        for x, y in batches:
            self._train_meter.add(self._engine.step(x, y))
            if self._config.optim.clip is not None:
                clip_parts(self._parts, self._config.optim.clip)
            self._optimizer.step()
            self._scheduler.step()
            self._stopwatch.images += len(x)
            if self._engine.steps % self._config.run.log_every == 0:
                self._log_training(epoch)
        self._stopwatch.stop()

    def _log_training(self, epoch: int) -> None:
        row = {
            "kind": "train",
            "step": self._engine.steps,
            "epoch": epoch + 1,
            "learning_rate": self._scheduler.get_last_lr()[0],
            **self._train_meter.read(),
            "images_per_second": self._stopwatch.lap(),
            "memory_bytes": per_rank(self._runtime, device.peak_memory(self._runtime.device)),
        }
        if self._runtime.rank == 0:
            append_metrics(self._folder, row)

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        for x, y in self._loader.test_batches():
            self._test_meter.add(self._engine.evaluate(x, y))
        test = self._test_meter.read()
        if self._runtime.rank == 0:
            append_metrics(self._folder, {"kind": "test", "step": self._engine.steps, "epoch": epoch, **test})
            accuracies = " ".join(f"{100 * accuracy:.1f}" for accuracy in test["accuracy"])
            tqdm.write(
                f"epoch {epoch:3d}  step {self._engine.steps:6d}  test accuracy {100 * test['accuracy'][-1]:.2f} %"
                f"  (by refiner: {accuracies})"
            )
        return test
