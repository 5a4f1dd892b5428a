"""What a run says of itself: at its beginning what runs where, at its end what it has reached and what to do next."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from sidpar.config.schema import Config
from sidpar.config.units import human_duration
from sidpar.data.loader import Loader
from sidpar.distributed.device import describe
from sidpar.methods import method_of
from sidpar.stages.stage import Stage

_MOST_RANKS = 16
"""Ranks whose refiners are counted one by one."""
_COLUMNS = 10
"""Refiners in a line."""


def introduction(
    config: Config,
    stage: Stage,
    loader: Loader,
    *,
    parameters: int,
    heads: str | None = None,
    choice: dict[str, Any],
    folder: Path,
) -> Iterator[str]:
    """Network, data, method, ranks and what is expected, line by line.

    Args:
        parameters: how many numbers the whole network learns.
        heads: the share that heads take of a network that was cut.
        choice: what a plan has chosen and expects; empty where none was made.
    """
    runtime, optim, steps = stage.runtime, config.optim, loader.steps_per_epoch
    classes = loader.preprocessing.num_classes
    yield f"run folder  {folder}"
    yield f"network     {config.model.network}, {stage.placement.num_refiners} refiners, {parameters:,} parameters"
    if heads is not None:
        yield f"heads       {heads}"
    images = f"{loader.num_images:,} training and {loader.num_test_images:,} test images"
    yield f"data        {config.data.name}: {images}, {classes} classes"
    yield f"training    {optim.epochs} epochs of {steps} steps, batch {config.data.batch_size}, {optim.name}"
    chosen = ", chosen by the plan" if choice else ""
    yield f"method      {method_of(config).in_words(config, runtime.world_size)}{chosen}"
    replicas = f"{runtime.num_replicas} replicas of " if runtime.num_replicas > 1 else ""
    ranks = f"{runtime.world_size} {'ranks' if runtime.world_size > 1 else 'rank'}"
    hosts = f" of {runtime.launch.hosts} hosts" if runtime.launch.hosts > 1 else ""
    counts = [len(stage.placement.refiners(rank)) for rank in range(runtime.cascade_size)]
    each = ", ".join(map(str, counts)) if len(counts) <= _MOST_RANKS else f"{min(counts)} to {max(counts)} on each"
    yield f"placement   {replicas}{stage.placement.num_refiners} refiners on {ranks}{hosts}: {each}"
    if norms := _batch_norms(stage):
        yield f"batch norm  statistics {norms}"
    yield f"device      {describe(runtime.device)}" + (f"; {runtime.backend}" if runtime.world_size > 1 else "")
    if choice:
        step = choice["predicted_step_seconds"]
        time = f"{human_duration(step)} a step, {human_duration(step * steps)} an epoch, by the plan"
    else:
        time = "told after the first steps"
    yield f"prediction  {time}"


def _batch_norms(stage: Stage) -> str:
    """How many take the statistics of which rows, if of any on other ranks; on rank 0."""
    found = []
    for kind, shared in stage.shared_norms.items():
        extracts = kind == "extractor"  # which rank 0 holds in every placement
        modules = shared.norms.values() if extracts else stage.skeleton.refiners.modules()
        number = sum(isinstance(module, _BatchNorm) for module in modules)
        rows = "the whole batch" if extracts and stage.placement.extractor == "sharded" else "a microbatch"
        found += [f"of {rows} on {shared.group.size()} ranks in the {kind} ({number})"] if number else []
    return ", ".join(found)


def accuracies(by_refiner: Sequence[float]) -> Iterator[str]:
    """The test accuracy after each refiner, as a table."""
    for start in range(0, len(by_refiner), _COLUMNS):
        part = by_refiner[start : start + _COLUMNS]
        yield "after refiner " + "".join(f"{start + k:6d}" for k in range(1, len(part) + 1))
        yield "accuracy, %   " + "".join(f"{100 * accuracy:6.1f}" for accuracy in part)


def next_commands(folder: Path) -> Iterator[str]:
    """Of a run that is complete."""
    path = shlex.quote(str(folder))
    yield f"run folder: {folder}"
    yield f"pictures:   python -m sidpar.plot {path}"
    yield f"predict:    python -m sidpar.predict {path} IMAGE..."
    yield f"compare:    python -m sidpar.plot {path} ANOTHER_RUN..."


def how_to_resume(config: Config, folder: Path) -> str:
    """What goes on with a run that was interrupted."""
    if config.run.dir is not None:
        return "the same command goes on"
    return f"the same command goes on, with --run.dir {shlex.quote(str(folder))}"
