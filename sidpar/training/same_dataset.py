"""The dataset of a run, the same on every rank, and its batches."""

import torch

from sidpar.config.schema import Config
from sidpar.data.dataset import Dataset
from sidpar.data.datasets import load
from sidpar.data.loader import Loader
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError


def load_dataset(config: Config, runtime: Runtime) -> Dataset:
    """The dataset, the same on every rank; a download happens once per node, before the others read. What one rank
    cannot read is an error of all."""
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
    dataset, problem = _read_dataset(config)
    problems = runtime.exchange("dataset", problem)
    for rank, found in enumerate(problems):
        if found is not None:
            where = "" if problems.count(found) == len(problems) else f"rank {rank}: "
            raise UsageError(f"{where}{found}")
    assert dataset is not None
    runtime.agree("dataset", dataset.traits())
    return dataset


def _read_dataset(config: Config) -> tuple[Dataset | None, str | None]:
    """The dataset, or what is wrong with it."""
    data = config.data
    try:
        settings = {"image_size": data.image_size, "workers": data.workers}
        read = {name: value for name, value in settings.items() if value is not None}
        dataset = load(data.name, data.root, **read)
        if data.label_noise > 0:
            dataset = dataset.with_label_noise(data.label_noise, config.run.seed)
        _ = dataset.statistics  # reads many of the files, if they are not in memory
    except (UsageError, OSError) as error:
        return None, str(error)
    return dataset, None


def build_loader(config: Config, dataset: Dataset, device: torch.device) -> Loader:
    """The configured batches, on the device."""
    return Loader(
        dataset,
        batch_size=config.data.batch_size,
        eval_batch_size=config.data.eval_batch_size,
        augment=config.data.augment,
        seed=config.run.seed,
        device=device,
    )
