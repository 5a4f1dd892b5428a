"""Which batch norms of a stage share their statistics, and over which ranks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sidpar.cascade.batch_norm.module import Company, synchronise
from sidpar.cascade.batch_norm.statistics import precision
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError
from sidpar.schedules.cut import Cut
from sidpar.schedules.placement import Copies, Holding


@dataclass(frozen=True)
class SharedNorms:
    """Batch norms over the ranks of a group, each of which has a part of the rows of every batch or microbatch."""

    group: dist.ProcessGroup
    company: Company = field(default_factory=Company)
    norms: dict[str, _BatchNorm] = field(default_factory=dict)
    """By global name; none where the parts of this rank have no batch norm."""

    def channels(self) -> Iterator[tuple[int, torch.dtype]]:
        """How many each has, and the dtype of its statistics."""
        for norm in self.norms.values():
            tensors = [*norm.parameters(), *norm.buffers()]
            yield norm.num_features, precision(tensors[0].dtype if tensors else torch.get_default_dtype())


def share_statistics(parts: Mapping[str, nn.Module], placement: Holding, runtime: Runtime) -> dict[str, SharedNorms]:
    """Let the batch norms of a rank's parts, by global name, share their statistics with the ranks that have other rows
    of the same microbatch: by kind of part, `extractor` and `refiners`, those that have any such ranks, the same kinds
    on all ranks. Raises UsageError where a batch norm cannot."""
    shared = {kind: SharedNorms(group) for kind, group in _groups(placement, runtime).items()}
    owners: dict[nn.Module, str] = {}
    for part, module in parts.items():
        of_kind = shared.get(part.split(".")[0])
        for name in [] if of_kind is None else synchronise(module, of_kind.company):
            norm = module.get_submodule(name)
            assert of_kind is not None
            assert isinstance(norm, _BatchNorm)
            of_kind.norms[f"{part}.{name}" if name else part] = norm
            if owners.setdefault(norm, part) != part:
                raise UsageError(
                    f"{part}.{name} is also a batch norm of {owners[norm]}, and parts of a cascade may share their "
                    "statistics with different ranks: give each a batch norm of its own"
                )
    return shared


def _groups(placement: Holding, runtime: Runtime) -> dict[str, dist.ProcessGroup]:
    """The ranks among which the rows of a microbatch are divided, by kind of part. A sharded extractor's are those of
    the whole batch: it goes through its share of all microbatches at once."""
    groups, copies = runtime.groups, isinstance(placement, Copies)
    if isinstance(placement, Cut):
        raise UsageError(
            "a pipeline of backpropagation divides no microbatch among ranks, so there are no statistics to share: "
            "remove sync_batchnorm"
        )
    if groups is None or runtime.world_size == 1:
        return {}
    found = {}
    if copies or placement.extractor == "sharded":
        found["extractor"] = groups.statistics
    elif groups.replicas is not None:
        found["extractor"] = groups.replicas.statistics
    if copies:
        found["refiners"] = groups.statistics
    elif groups.replicas is not None:
        found["refiners"] = groups.replicas.statistics
    return found
