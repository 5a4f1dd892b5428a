"""What one rank holds of a cascade: its refiners, and the extractor where the placement puts it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from sidpar.cascade import Cascade, TensorTuple, extract, refine
from sidpar.placement import ExtractorPlacement, Placement, place_as_given, place_by_count
from sidpar.runtime import Runtime
from sidpar.specs import Skeleton

Autocast = Literal["none", "bf16"]


@dataclass(frozen=True)
class Compute:
    """How modules are executed; results agree up to rounding.

    Args:
        autocast: `bf16` runs matrix products in bfloat16. Losses, beliefs and messages stay in fp32.
        channels_last: the extractor's weights and images in NHWC order, faster for convolutions.
        compile: torch.compile each module on its own.
    """

    autocast: Autocast = "none"
    channels_last: bool = False
    compile: bool = False


class Stage(nn.Module):
    """This rank's share of a cascade, on its device. Parameters keep their global names: `extractor.…`, `refiners.3.…`.

    Args:
        cascade: the whole network, the same on every rank; its modules are taken, not copied.
        extractor: where features are computed (DESIGN section 4).
        counts: refiners per rank; by default as even as possible.
    """

    def __init__(
        self,
        cascade: Cascade,
        runtime: Runtime,
        *,
        extractor: ExtractorPlacement = "sharded",
        counts: Sequence[int] | None = None,
        compute: Compute = Compute(),
    ) -> None:
        super().__init__()
        num_refiners, num_ranks = len(cascade.refiners), runtime.world_size
        given = (
            place_by_count(num_refiners, num_ranks)
            if counts is None
            else place_as_given(counts, num_refiners, num_ranks)
        )
        self.placement = Placement(given, extractor)
        if extractor == "sharded" and num_ranks > 1:
            _refuse_batch_dependence(cascade.extractor, num_ranks)
        self.runtime = runtime
        self.compute = compute
        self.num_classes = cascade.num_classes
        self.skeleton = Skeleton(cascade)
        self.extractor = cascade.extractor if self.placement.holds_extractor(runtime.rank) else None
        self.refiners = nn.ModuleDict({str(i): cascade.refiners[i] for i in self.own_refiners})
        self._norms = {
            id(part): [m for m in part.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
            for part in self.parts().values()
        }
        self.to(runtime.device)
        if compute.channels_last and self.extractor is not None:
            self.extractor.to(memory_format=torch.channels_last)
        if compute.compile:
            for module in self.parts().values():
                module.compile()

    @property
    def own_refiners(self) -> range:
        """The refiners this rank holds, by their global numbers."""
        return self.placement.refiners(self.runtime.rank)

    def parts(self) -> dict[str, nn.Module]:
        """The modules that learn by a loss of their own, by global name. Gradients are clipped part by part."""
        extractor = {} if self.extractor is None else {"extractor": self.extractor}
        return extractor | {f"refiners.{i}": module for i, module in self.refiners.items()}

    def extract(self, x: Tensor, *, graph: bool) -> TensorTuple:
        """Features of x [b, ...], recorded by autograd if `graph`."""
        assert self.extractor is not None, "only a rank that holds the extractor extracts"
        if self.compute.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._execution(self.extractor, graph):
            return extract(self.extractor, x)

    def refine(self, i: int, features: TensorTuple, state: TensorTuple, *, graph: bool) -> TensorTuple:
        """Refiner i of this rank: the next state, recorded by autograd if `graph`."""
        refiner = self.refiners[str(i)]
        with self._execution(refiner, graph):
            return refine(refiner, features, state)

    @contextmanager
    def _execution(self, module: nn.Module, graph: bool) -> Iterator[None]:
        # Running statistics of batch norm are updated by passes that record a graph, and by no other: a teacher pass
        # before the student's would count the batch twice.
        norms = [] if graph or not module.training else self._norms[id(module)]
        for norm in norms:
            norm.track_running_stats = False
        try:
            with (
                torch.set_grad_enabled(graph),
                torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=self.compute.autocast == "bf16"),
            ):
                yield
        finally:
            for norm in norms:
                norm.track_running_stats = True


def _refuse_batch_dependence(extractor: nn.Module, num_ranks: int) -> None:
    for name, module in extractor.named_modules():
        if isinstance(module, _BatchNorm):
            raise ValueError(
                f"extractor.{name} is a {type(module).__name__}, and a sharded extractor sees only 1/{num_ranks} of "
                "the batch on each rank, so its statistics would differ: use extractor=replicated or root, or a norm "
                "that does not depend on the batch, such as GroupNorm"
            )
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise ValueError(
                f"extractor.{name} is a {type(module).__name__}, and in a sharded extractor its mask would depend on "
                f"the number of ranks ({num_ranks}): use extractor=replicated or root, or set p=0"
            )
