"""What one rank holds of a cascade: its refiners, and the extractor where the placement puts it."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from sidpar.cascade.cascade import Cascade, TensorTuple, as_tuple, extract, refine
from sidpar.cascade.specs import CascadeSpecs, Skeleton, layer_names, named_sequence
from sidpar.config.groups.choices import ExtractorPlacement
from sidpar.config.groups.compute import Compute
from sidpar.distributed.device import preserved_generator, seed_generator
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError
from sidpar.schedules.placement import Holding, Placement, place_as_given, place_by_count

_PROBE_ROWS = 32


class Stage(nn.Module):
    """This rank's share of a cascade, on its device. Parameters keep their global names: `extractor.…`, `refiners.3.…`.

    Args:
        cascade: the whole network, the same on every rank; its modules are taken, not copied.
        extractor: where features are computed: of the whole batch on every rank (`replicated`) or on the first one
            (`root`), or on each of its share of the batch (`sharded`). The gradients are the same.
        counts: refiners per rank; by default as even as possible.
        placement: instead of these two, for engines of backpropagation: `Copies` of the whole cascade, or a `Cut`.
    """

    def __init__(
        self,
        cascade: Cascade,
        runtime: Runtime,
        *,
        extractor: ExtractorPlacement = "sharded",
        counts: Sequence[int] | None = None,
        placement: Holding | None = None,
        compute: Compute = Compute(),
    ) -> None:
        super().__init__()
        self.placement: Holding = placement or _place(len(cascade.refiners), runtime.cascade_size, extractor, counts)
        _refuse_shared_parameters(cascade, layers=self.placement.extractor == "cut")
        self.runtime = runtime
        self.compute = compute
        self.num_classes = cascade.num_classes
        self.skeleton = Skeleton(cascade)
        self._checked: list[CascadeSpecs] = []
        self.extractor = self._own_extractor(cascade.extractor)
        self.refiners = nn.ModuleDict({str(i): cascade.refiners[i] for i in self.own_refiners})
        self.to(runtime.device)
        if compute.channels_last and self.extractor is not None:
            self.extractor.to(memory_format=torch.channels_last)
        if compute.compile:
            for name, module in self.parts().items():
                if name != "extractor" or self.placement.extractor != "cut":  # sections compile their own layers
                    module.compile()

    @property
    def own_refiners(self) -> Sequence[int]:
        """The refiners this rank holds, by their global numbers."""
        return self.placement.refiners(self.runtime.cascade_rank)

    def holders(self, name: str) -> list[int]:
        """The ranks that hold a parameter or buffer, given by its global name."""
        kind, child, *_ = name.split(".")
        names = self._layer_names
        layer = 0 if names == [""] or kind == "refiners" else names.index(child)

        def holds(rank: int) -> bool:
            if kind == "refiners":
                return int(child) in self.placement.refiners(rank)
            return layer in self.placement.extractor_layers(rank, len(names))

        size = self.runtime.cascade_size
        return [rank for rank in range(self.runtime.world_size) if holds(rank % size)]

    @property
    def _layer_names(self) -> list[str]:
        """The pieces of the extractor that the placement may put on different ranks."""
        return self.skeleton.layer_names if self.placement.extractor == "cut" else [""]

    def _own_extractor(self, extractor: nn.Module) -> nn.Module | None:
        """All of it, none of it, or those of its layers that lie here, under their global names."""
        names = self._layer_names
        own = self.placement.extractor_layers(self.runtime.cascade_rank, len(names))
        if len(own) == len(names):
            return extractor
        return named_sequence(extractor, [names[k] for k in own]) if own else None

    def parts(self) -> dict[str, nn.Module]:
        """This rank's extractor and refiners, by global name."""
        extractor = {} if self.extractor is None else {"extractor": self.extractor}
        return extractor | {f"refiners.{i}": module for i, module in self.refiners.items()}

    def freeze_extractor(self) -> None:
        """Put an extractor that is not trained in evaluation mode: no random masks, its own statistics."""
        if self.extractor is not None:
            self.extractor.eval()

    def trainable_flags(self) -> list[bool]:
        """`requires_grad` of every parameter, in order."""
        return [parameter.requires_grad for parameter in self.parameters()]

    def check(self, x: Tensor) -> CascadeSpecs:
        """What crosses the seams for inputs like x [B, ...]. Raises UsageError if the cascade cannot take them, or if
        a sharded extractor would compute something else than one that sees the whole batch. Cached per shape."""
        specs = self.skeleton.specs(x)
        if self.placement.extractor == "sharded" and self.runtime.cascade_size > 1 and specs not in self._checked:
            assert self.extractor is not None, "every rank holds a sharded extractor"
            if depends_on_the_batch(self.extractor, x.to(self.runtime.device)):
                suspects = [
                    f"extractor.{name} ({type(module).__name__})"
                    for name, module in self.extractor.named_modules()
                    if isinstance(module, _NormBase | _DropoutNd)
                ]
                raise UsageError(
                    "in training, the extractor's features of a sample depend on the rest of the batch or on random "
                    f"numbers{': ' + ', '.join(suspects) if suspects else ''}; a sharded extractor sees only "
                    f"1/{self.runtime.cascade_size} of the batch on each rank and would train on other ones: use "
                    "extractor=replicated or root, or layers that treat each sample alone, such as GroupNorm"
                )
            self._checked.append(specs)
        return specs

    def extract(self, x: Tensor, *, graph: bool, version: nn.Module | None = None) -> TensorTuple:
        """Features of x [b, ...], recorded by autograd if `graph`; by another version of the extractor, if given."""
        extractor = version or self.extractor
        assert extractor is not None, "only a rank that holds the extractor extracts"
        with self._execution(extractor, graph):
            return extract(extractor, self._in_memory_format(x))

    def run_layers(self, layers: nn.Module, x: Tensor, *, graph: bool) -> TensorTuple:
        """The whole extractor, or some of its layers, which lie here, on an activation x [b, ...]."""
        with self._execution(layers, graph):
            return as_tuple(layers(self._in_memory_format(x)))

    def refine(self, i: int, features: TensorTuple, state: TensorTuple, *, graph: bool) -> TensorTuple:
        """Refiner i of this rank: the next state, recorded by autograd if `graph`."""
        refiner = self.refiners[str(i)]
        with self._execution(refiner, graph):
            return refine(refiner, features, state)

    def _in_memory_format(self, x: Tensor) -> Tensor:
        channels_last = self.compute.channels_last and x.dim() == 4
        return x.contiguous(memory_format=torch.channels_last) if channels_last else x

    @contextmanager
    def inference_mode(self) -> Iterator[None]:
        """Evaluation mode within; afterwards every module is in the mode in which it was, one by one."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def autocast(self) -> torch.autocast:
        """The context in which modules run."""
        return torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=self.compute.autocast == "bf16")

    @contextmanager
    def _execution(self, module: nn.Module, graph: bool) -> Iterator[None]:
        # Running statistics count the passes that record a graph, and no other: a teacher pass before the student's
        # would count the batch twice.
        kept = [] if graph or not module.training else [(buffer, buffer.clone()) for buffer in module.buffers()]
        with torch.set_grad_enabled(graph), self.autocast():
            yield
        for buffer, before in kept:
            buffer.copy_(before)


def _place(num_refiners: int, num_ranks: int, extractor: ExtractorPlacement, counts: Sequence[int] | None) -> Placement:
    if counts is None:
        return Placement(place_by_count(num_refiners, num_ranks), extractor)
    return Placement(place_as_given(counts, num_refiners, num_ranks), extractor)


def _refuse_shared_parameters(cascade: Cascade, *, layers: bool) -> None:
    """A parameter of two parts would be two parameters once these are on different ranks, and on one rank it would be
    clipped and updated once for each. With `layers`, each layer of the extractor is a part of its own."""
    names = layer_names(cascade.extractor) if layers else [""]
    parts = {f"extractor.{name}" if name else "extractor": cascade.extractor.get_submodule(name) for name in names} | {
        f"refiners.{i}": part for i, part in enumerate(cascade.refiners)
    }
    owners: dict[int, str] = {}
    for name, part in parts.items():
        for parameter_name, parameter in part.named_parameters():
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                whole = ", or use extractor=root" if name.startswith("extractor") else ""
                raise UsageError(
                    f"{name}.{parameter_name} is also a parameter of {owner}, but the parts of a cascade are placed, "
                    f"clipped and updated each on its own: give each parameters of its own{whole}"
                )


def depends_on_the_batch(extractor: nn.Module, x: Tensor) -> bool:
    """Whether a training pass over x treats a sample differently according to its company or to random numbers.

    Found by trying, so it also sees what no list of module types would: functional dropout, a user's own layers.
    """
    probe = copy.deepcopy(extractor)
    buffers = {name: buffer.clone() for name, buffer in probe.named_buffers()}
    rows = x[:_PROBE_ROWS]
    with torch.no_grad(), preserved_generator(x.device):
        try:
            seed_generator(x.device, 0)
            together = extract(probe, rows)
            seed_generator(x.device, 1)
            halves = [extract(probe, half) for half in rows.tensor_split(2) if len(half)]
        except ValueError:  # batch norm refuses a single value per channel
            return True
    apart = [torch.cat(parts) for parts in zip(*halves, strict=True)]
    same_features = all(
        torch.allclose(one.double(), other.double(), rtol=1e-3, atol=1e-3 * one.double().abs().max().item())
        for one, other in zip(together, apart, strict=True)
    )
    same_buffers = all(torch.equal(buffer, buffers[name]) for name, buffer in probe.named_buffers())
    return not (same_features and same_buffers)
