"""The content of a checkpoint: everything that decides how a run goes on, under names that do not depend on K."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sidpar.distributed.device import generator_states, set_generator_states
from sidpar.engines.base import Engine
from sidpar.errors import UsageError
from sidpar.runs.checkpoint import Stored
from sidpar.stages.stage import Stage
from sidpar.training.optim import Optimizers

MODEL, OPTIMIZER, ENGINE, RANDOM = "model/", "optimizer/", "engine/", "random/"


class TrainingState:
    """Weights, buffers, optimizers, what an engine carries from step to step, and the generators of every rank.

    The random masks, the order of the data and the learning rate follow from the step, which a checkpoint tells beside
    its tensors.
    """

    def __init__(self, engine: Engine, optimizers: Optimizers) -> None:
        self._engine = engine
        self._stage = engine.stage
        self._optimizers = optimizers

    def tensors(self) -> dict[str, Tensor]:
        """What this rank contributes to a checkpoint. Ranks that hold the same share the work: each writes a part."""
        writes = self._writers()
        found = {MODEL + name: tensor for name, tensor in self._stage.state_dict().items() if writes[name]}
        for name, tensor in self._optimizers.state().items():
            if writes[name.rsplit("/", 1)[0]]:
                found[OPTIMIZER + name] = tensor
        for name, tensor in self._engine.carried().items():
            if writes[name.rsplit("/", 1)[0]]:
                found[ENGINE + name] = tensor
        rank, device = self._stage.runtime.rank, self._stage.runtime.device
        return found | {f"{RANDOM}rank {rank}/{kind}": state for kind, state in generator_states(device).items()}

    def all_finite(self) -> bool:
        """Whether this rank's weights are all finite. Waits for the device."""
        parameters = [p for p in self._stage.parameters() if p.numel() > 0]  # the largest of none is undefined
        return not parameters or bool(nn.utils.get_total_norm(parameters, math.inf).isfinite())

    def not_finite(self) -> list[str]:
        """The parts whose weights are not all finite, by global name."""
        parts = self._stage.parts().items()
        return [name for name, part in parts if not all(bool(p.isfinite().all()) for p in part.parameters())]

    def load(self, stored: Stored) -> None:
        """Take this rank's share of a checkpoint that fits. All ranks call it.

        Raises UsageError, the same on every rank, if one of them cannot read its share.
        """
        runtime, step = self._stage.runtime, int(stored.progress["step"])
        own = self._stage.state_dict()
        wanted = [name for name in stored.shapes if _subject(name) in own or _subject(name) == f"rank {runtime.rank}"]
        tensors, problem = _try_to_read(stored, wanted)
        runtime.raise_together("problem with the checkpoint", problem)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[MODEL + name])
        self._optimizers.load(_strip(tensors, OPTIMIZER), step)
        self._engine.carry(_strip(tensors, ENGINE))
        self._engine.steps = step
        set_generator_states(runtime.device, _strip(tensors, f"{RANDOM}rank {runtime.rank}/"))

    def _writers(self) -> dict[str, bool]:
        """Whether this rank writes what belongs to a name. Copies of a parameter are equal on all ranks that hold it;
        buffers are not where replicas see different data, and the first holder's are those that are evaluated."""
        parameters, rank = {name for name, _ in self._stage.named_parameters()}, self._stage.runtime.rank
        writes = {}
        for k, name in enumerate(self._stage.skeleton.state_dict()):
            holders = self._stage.holders(name)
            writes[name] = rank == holders[k % len(holders) if name in parameters else 0]
        return writes


def check_fits(stored: Stored, stage: Stage, data: Mapping[str, Any]) -> None:
    """Raises UsageError, the same on every rank, if a checkpoint is that of another network or dataset.

    Args:
        data: the dataset's traits.
    """
    here = {MODEL + name: list(tensor.shape) for name, tensor in stage.skeleton.state_dict().items()}
    there = {name: list(shape) for name, (shape, _) in stored.shapes.items() if name.startswith(MODEL)}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise UsageError(
                f"the checkpoint {stored.path} is of another network: {name.removeprefix(MODEL)} is "
                f"{there.get(name, 'missing')} there and {here.get(name, 'missing')} here. Train the same network, or "
                "choose another run.dir"
            )
    before = stored.progress["data"]
    changed = [
        f"{trait}: {before.get(trait)} there, {data[trait]} here" for trait in data if before.get(trait) != data[trait]
    ]
    if changed:
        raise UsageError(
            f"the checkpoint {stored.path} is of other data ({'; '.join(changed)}): train with the same data, or "
            "choose another run.dir"
        )


def _try_to_read(stored: Stored, names: list[str]) -> tuple[dict[str, Tensor], str | None]:
    """The tensors, or what is wrong with them: the others must be told before any of them goes on."""
    try:
        return stored.read(names), None
    except UsageError as error:
        return {}, str(error)


def _subject(name: str) -> str:
    """The parameter or rank that a tensor belongs to: `optimizer/extractor.0.weight/exp_avg`."""
    kind, rest = name.split("/", 1)
    return rest if f"{kind}/" == MODEL else rest.rsplit("/", 1)[0]


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
