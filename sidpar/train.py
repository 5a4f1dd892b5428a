"""`python -m sidpar.train`: from a configuration to a run folder. Start it with torchrun for more than one rank."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from sidpar import models
from sidpar.balance import Costs, measure_costs
from sidpar.cascade import Cascade
from sidpar.checkpoint import save_weights
from sidpar.config import Config, parse
from sidpar.data.datasets import Dataset, load
from sidpar.data.loader import Loader
from sidpar.device import describe
from sidpar.engines import Engine
from sidpar.engines.local import LocalEngine
from sidpar.engines.sid import SIDEngine
from sidpar.errors import UsageError
from sidpar.placement import place_by_cost
from sidpar.run_folder import WEIGHTS, create_run_folder, source_commit, write_summary
from sidpar.runtime import Runtime
from sidpar.stage import Stage
from sidpar.trainer import Outcome, Trainer


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
    message between ranks), and creates the run folder last.
    """

    def __init__(self, config: Config, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        runtime.agree("configuration", _flat(config.to_dict()))
        dataset = load_dataset(config, runtime)
        cascade = build_cascade(config, dataset)
        loader = Loader(
            dataset,
            batch_size=config.data.batch_size,
            eval_batch_size=config.data.eval_batch_size,
            augment=config.data.augment,
            seed=config.run.seed,
            device=runtime.device,
        )
        self.stage = Stage(
            cascade,
            runtime,
            extractor=config.parallel.extractor,
            counts=choose_counts(config, cascade, loader, runtime),
            compute=config.compute,
        )
        self.stage.check(loader.sample)  # refuse images that the network cannot take, before the folder exists
        engine = build_engine(config, self.stage)
        self.folder = create_run_folder(config, runtime)
        self.trainer = Trainer(engine, loader, config, self.folder)

    def train(self) -> None:
        """Train, and write the weights and the summary."""
        if self.runtime.rank == 0:
            print(
                f"{self.config.method}: {self.stage.placement.num_refiners} refiners on {self.runtime.world_size} "
                f"ranks {list(self.stage.placement.counts)}, {self.runtime.backend}, {describe(self.runtime.device)}"
            )
        outcome = self.trainer.fit()
        save_weights(self.stage, self.folder / WEIGHTS)
        if self.runtime.rank == 0:
            write_summary(self.folder, self._summary(outcome))
            print(
                f"test accuracy {100 * outcome.test['accuracy'][-1]:.2f} % after {outcome.seconds:.1f} s of training "
                f"({outcome.images_per_second:.0f} images/s); run folder: {self.folder}"
            )

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
            "refiners_per_rank": list(self.stage.placement.counts),
            "peak_memory_bytes": outcome.peak_memory,
            "backend": self.runtime.backend,
            "device": describe(self.runtime.device),
            "torch": torch.__version__,
            "commit": source_commit(),
        }


def load_dataset(config: Config, runtime: Runtime) -> Dataset:
    """The dataset on every rank; a download happens once per node, before the others read."""
    data = config.data
    if data.download:
        problem = None
        if runtime.local_rank == 0:
            try:
                load(data.name, data.root, download=True)
            except (UsageError, OSError) as error:
                problem = f"{data.name} cannot be downloaded: {error}"
        problems = [found for found in runtime.exchange("download", problem) if found is not None]
        if problems:
            raise UsageError(problems[0])
    return load(data.name, data.root)


def build_cascade(config: Config, dataset: Dataset) -> Cascade:
    """The configured network, the same on every rank."""
    model = config.model
    if model.name == "wide_mlp":
        assert model.width is not None
        assert model.depth is not None
        return models.wide_mlp(
            dataset.image_shape,
            dataset.num_classes,
            model.num_refiners,
            width=model.width,
            depth=model.depth,
            seed=config.run.seed,
        )
    return models.simple_cnn(dataset.image_shape, dataset.num_classes, model.num_refiners, seed=config.run.seed)


def choose_counts(config: Config, cascade: Cascade, loader: Loader, runtime: Runtime) -> Sequence[int] | None:
    """Refiners per rank; None leaves it to `Stage`, which places by count."""
    parallel, world_size = config.parallel, runtime.world_size
    if parallel.placement == "count" or world_size == 1:
        return None
    if not isinstance(parallel.placement, str):
        return parallel.placement
    if parallel.costs is not None and len(parallel.costs) != len(cascade.refiners):
        raise UsageError(
            f"parallel.costs lists {len(parallel.costs)} numbers, but model.num_refiners={len(cascade.refiners)}: "
            "give one per refiner"
        )
    costs = Costs(parallel.extractor_cost or 0.0, parallel.costs or [])
    if parallel.costs is None:
        measured = None
        if runtime.rank == 0:
            x = loader.sample.repeat(config.data.batch_size, 1, 1, 1)[: config.data.batch_size]
            measured = asdict(measure_costs(cascade, x, config.compute))
        costs = Costs(**runtime.from_root("measured costs", measured))
    on_root = costs.extractor if parallel.extractor == "root" else 0.0
    return place_by_cost(costs.refiners, world_size, base_loads=[on_root] + [0.0] * (world_size - 1))


def build_engine(config: Config, stage: Stage) -> Engine:
    """The engine of `config.method`; from here on nobody asks which it is."""
    if config.method == "local":
        return LocalEngine(stage, config.objective, seed=config.run.seed)
    return SIDEngine(
        stage,
        config.objective,
        schedule=config.parallel.schedule,
        microbatches=config.parallel.microbatches,
        seed=config.run.seed,
    )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{"optim": {"lr": 1}} to {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat


if __name__ == "__main__":
    main()
