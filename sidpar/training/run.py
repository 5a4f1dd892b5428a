"""A run: everything that one rank needs to train as a configuration says, from its beginning or from a checkpoint."""

import logging
import os
import platform
from functools import partial
from typing import Any

import torch

from sidpar.config.schema import Config
from sidpar.config.units import human_duration
from sidpar.distributed.device import describe
from sidpar.distributed.runtime import Runtime
from sidpar.errors import RunError, UsageError
from sidpar.methods import method_of
from sidpar.models.cutting.arithmetic import shares_of_heads
from sidpar.models.network import build_network
from sidpar.runs.checkpoint import find_newest
from sidpar.runs.launches import ask_for_requeue
from sidpar.runs.logs import log_to_file
from sidpar.runs.run_folder import (
    WEIGHTS,
    OpenFolder,
    RunFolder,
    check_sight,
    find_run_folder,
    write_label_noise,
    write_summary,
)
from sidpar.runs.weights import save_weights
from sidpar.stages.check import check
from sidpar.training.introduction import accuracies, how_to_resume, introduction, next_commands
from sidpar.training.same_dataset import build_loader, load_dataset
from sidpar.training.same_network import build_alike
from sidpar.training.trainer import Outcome, Trainer
from sidpar.training.training_state import check_fits
from sidpar.version import source_commit

_log = logging.getLogger(__name__)


def train(config: Config, runtime: Runtime) -> bool:
    """The run that `config` describes, from its beginning or from where it was interrupted; whether it is finished now.

    A run that is complete already is left alone.
    """
    runtime.agree("configuration", config.flat())
    folder = find_run_folder(config, runtime)
    if folder.state == "complete":
        _log.info(f"the run in {folder.path} is complete: nothing to do")
        return True
    run = None
    try:
        run = Run(config, runtime, folder)
        return run.train()
    except (UsageError, RunError) as error:
        _log.error(f"{type(error).__name__}: {error}")
        raise
    except Exception:
        _log.exception("the run ends here")
        raise
    finally:
        if run is not None:
            run.folder.close()


class Run:
    """Everything that one rank needs to train as `config` says.

    Making it checks the settings against the data, the network and the other ranks (through the store, before any
    message between ranks but those that `parallel: auto` measures), and creates the run folder last.
    """

    def __init__(self, config: Config, runtime: Runtime, folder: RunFolder) -> None:
        assert runtime.num_replicas == config.parallel.replicas, "the runtime was started as the configuration says"
        dataset = load_dataset(config, runtime)
        build = partial(build_network, config, dataset.image_shape, dataset.num_classes)
        cascade = build_alike(build, runtime)
        self._num_parameters = sum(parameter.numel() for parameter in cascade.parameters())
        loader = build_loader(config, dataset, runtime.device)
        self.preprocessing, self._loader = loader.preprocessing, loader
        self._heads = shares_of_heads(cascade, loader.sample[:1].cpu()) if runtime.rank == 0 else None
        method = method_of(config)
        config, self.choice = method.choose(config, build, loader.sample, runtime)
        self.config, self.runtime = config, runtime
        self.stage = method.place(config, cascade, loader.sample, runtime)
        check(self.stage, loader.sample)  # refuse images that the network cannot take, before the folder exists
        engine = method.engine(config, self.stage, loader.sample)
        stored, skipped = find_newest(folder.path, runtime)
        if stored is not None:
            check_sight(folder.path, runtime)
            check_fits(stored, self.stage, loader.traits)
        self.folder = OpenFolder(folder, config, runtime)
        write_label_noise(self.folder.path, dataset.moved, runtime)
        problem = log_to_file(self.folder.path, runtime.rank, lambda: engine.steps)
        runtime.raise_together("problem with the log", problem)
        for reason in skipped:
            _log.warning(f"a checkpoint is skipped: {reason}")
        self.trainer = Trainer(engine, loader, config, self.folder.path, stored)

    def train(self) -> bool:
        """Train, and write the weights and the summary; False if the ranks have stopped on request."""
        self._introduce()
        outcome = self.trainer.fit()
        if outcome is None:
            ask_for_requeue(self.folder.path, self.runtime)
            resume = how_to_resume(self.config, self.folder.path)
            _log.info(f"stopped on request; {resume}. Run folder: {self.folder.path}")
            return False
        save_weights(self.stage, self.folder.path / WEIGHTS, {"preprocessing": self.preprocessing.to_json()})
        if self.runtime.rank == 0:
            write_summary(self.folder.path, self._summary(outcome))
        accuracy = outcome.test["accuracy"]
        speed = f"{outcome.images_per_second:.0f} images/s"
        _log.info(
            f"test accuracy {100 * accuracy[-1]:.2f} % after {human_duration(outcome.seconds)} of training ({speed})"
        )
        for line in [*accuracies(accuracy), *next_commands(self.folder.path)]:
            _log.info(line)
        return True

    def _introduce(self) -> None:
        runtime = self.runtime
        _log.debug(
            f"rank {runtime.rank} of {runtime.world_size} is process {os.getpid()} on {platform.node()}, "
            f"{runtime.device}, with refiners {list(self.stage.own_refiners)}"
        )
        lines = introduction(
            self.config,
            self.stage,
            self._loader,
            parameters=self._num_parameters,
            heads=self._heads,
            choice=self.choice,
            folder=self.folder.path,
        )
        for line in lines:
            _log.info(line)
        saved = self.stage.skeleton.state_dict()
        kept = [f"{part}.{name}" for part, kept in self.stage.kept.items() for name in kept.names]
        if unsaved := [name for name in kept if name not in saved]:
            _log.warning(
                f"checkpoints hold parameters and buffers, but not {', '.join(unsaved)}, so a run that goes on begins "
                "with what the builder gives: keep it in a buffer"
            )
        images, batch_size = self._loader.num_images, self.config.data.batch_size
        if batch_size > images:
            _log.warning(
                f"data.batch_size={batch_size} is more than the {images} training images: an epoch is one batch of them"
            )

    def _refiners_per_rank(self) -> list[int]:
        one_replica = [len(self.stage.placement.refiners(rank)) for rank in range(self.runtime.cascade_size)]
        return one_replica * self.runtime.num_replicas

    def _summary(self, outcome: Outcome) -> dict[str, Any]:
        return {
            "name": self.config.run.name,
            "method": self.config.method,
            "rule": self.config.objective.rule if method_of(self.config).learns_locally else None,
            "test_accuracy": outcome.test["accuracy"][-1],
            "refiner_test_accuracy": outcome.test["accuracy"],
            "steps": outcome.steps,
            "resumed_at": outcome.resumed_at,
            "epochs": self.config.optim.epochs,
            "wall_seconds": outcome.seconds,
            "images_per_second": outcome.images_per_second,
            "world_size": self.runtime.world_size,
            "replicas": self.runtime.num_replicas,
            "refiners_per_rank": self._refiners_per_rank(),
            "plan": self.choice or None,
            "heads": self._heads,
            "peak_memory_bytes": outcome.peak_memory,
            "backend": self.runtime.backend,
            "device": describe(self.runtime.device),
            "torch": torch.__version__,
            "commit": source_commit(),
        }
