"""`python -m sidpar.train`: from a configuration to a run folder. Start it with torchrun for more than one rank."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from sidpar.auto import resolve
from sidpar.build import build_cascade, build_engine, build_loader, build_stage, load_dataset
from sidpar.command_line import parse
from sidpar.config import Config
from sidpar.device import describe
from sidpar.errors import UsageError
from sidpar.network import build_alike
from sidpar.run_folder import WEIGHTS, create_run_folder, source_commit, write_summary
from sidpar.runtime import Runtime
from sidpar.trainer import Outcome, Trainer
from sidpar.units import human_seconds
from sidpar.weights import save_weights


@record
def main(arguments: Sequence[str] | None = None) -> None:
    """One rank of a run. A mistake in the settings ends every rank with exit code 2 and one line that names it."""
    config = parse(arguments)
    try:
        runtime = Runtime.start(
            backend=config.parallel.backend,
            device=config.parallel.device,
            init_timeout=config.parallel.init_timeout,
            step_timeout=config.parallel.step_timeout,
            replicas=config.parallel.replicas,
        )
        run = Run(config, runtime)
    except UsageError as error:
        print(f"sidpar.train: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    with runtime:
        run.train()


class Run:
    """Everything that one rank needs to train as `config` says.

    Making it checks the settings against the data, the network and the other ranks (through the store, before any
    message between ranks but those that `parallel: auto` measures), and creates the run folder last.
    """

    def __init__(self, config: Config, runtime: Runtime) -> None:
        assert runtime.num_replicas == config.parallel.replicas, "the runtime was started as the configuration says"
        runtime.agree("configuration", _flat(config.to_dict()))
        dataset = load_dataset(config, runtime)
        build = partial(build_cascade, config, dataset)
        cascade = build_alike(build, runtime)
        loader = build_loader(config, dataset, runtime.device)
        self.preprocessing = loader.preprocessing
        self.choice: dict[str, Any] = {}
        if config.parallel.auto:
            config, self.choice = resolve(config, build, loader.sample, runtime)
        self.config, self.runtime = config, runtime
        self.stage = build_stage(config, cascade, loader, runtime)
        self.stage.check(loader.sample)  # refuse images that the network cannot take, before the folder exists
        engine = build_engine(config, self.stage)
        self.folder = create_run_folder(config, runtime)
        self.trainer = Trainer(engine, loader, config, self.folder)

    def train(self) -> None:
        """Train, and write the weights and the summary."""
        if self.runtime.rank == 0:
            if self.choice:
                parallel, seconds = self.config.parallel, self.choice["predicted_step_seconds"]
                print(
                    f"chosen: schedule {parallel.schedule}, extractor {parallel.extractor}, "
                    f"microbatches {parallel.microbatches}; {human_seconds(seconds)} a step predicted"
                )
            replicas = f"{self.runtime.num_replicas} replicas of " if self.runtime.num_replicas > 1 else ""
            print(
                f"{self.config.method}: {replicas}{self.stage.placement.num_refiners} refiners on "
                f"{self.runtime.world_size} ranks {self._refiners_per_rank()}, {self.runtime.backend}, "
                f"{describe(self.runtime.device)}"
            )
        outcome = self.trainer.fit()
        save_weights(self.stage, self.folder / WEIGHTS, {"preprocessing": self.preprocessing.to_json()})
        if self.runtime.rank == 0:
            write_summary(self.folder, self._summary(outcome))
            print(
                f"test accuracy {100 * outcome.test['accuracy'][-1]:.2f} % after {outcome.seconds:.1f} s of training "
                f"({outcome.images_per_second:.0f} images/s); run folder: {self.folder}"
            )

    def _refiners_per_rank(self) -> list[int]:
        one_replica = [len(self.stage.placement.refiners(rank)) for rank in range(self.runtime.cascade_size)]
        return one_replica * self.runtime.num_replicas

    def _summary(self, outcome: Outcome) -> dict[str, Any]:
        return {
            "name": self.config.run.name,
            "method": self.config.method,
            "test_accuracy": outcome.test["accuracy"][-1],
            "refiner_test_accuracy": outcome.test["accuracy"],
            "steps": outcome.steps,
            "epochs": self.config.optim.epochs,
            "wall_seconds": outcome.seconds,
            "images_per_second": outcome.images_per_second,
            "world_size": self.runtime.world_size,
            "replicas": self.runtime.num_replicas,
            "refiners_per_rank": self._refiners_per_rank(),
            "plan": self.choice or None,
            "peak_memory_bytes": outcome.peak_memory,
            "backend": self.runtime.backend,
            "device": describe(self.runtime.device),
            "torch": torch.__version__,
            "commit": source_commit(),
        }


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{"optim": {"lr": 1}} to {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat


if __name__ == "__main__":
    main()
