"""One rank's share of a cascade: its refiners, and the extractor if the placement puts it there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sidpar.cascade.batch_norm.stand_ins import SameRows
from sidpar.cascade.batch_norm.statistics import Sharing
from sidpar.cascade.cascade import Cascade, TensorTuple, as_tuple, extract, refine
from sidpar.cascade.inputs import Inputs
from sidpar.cascade.module_state import undone
from sidpar.cascade.specs import Skeleton, layer_names, named_sequence
from sidpar.cascade.undo import undone_as_seen
from sidpar.config.groups.choices import ExtractorPlacement
from sidpar.config.groups.compute import Compute
from sidpar.distributed.device import preserved_generator, seed_generator
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError
from sidpar.schedules.placement import Holding, Placement, place_as_given, place_by_count
from sidpar.seeding import seed_host, undisturbed
from sidpar.stages.batch_norm import SharedNorms, share_statistics
from sidpar.stages.kept import Kept


@dataclass
class Fits:
    """The numbers of rows that modules accept."""

    picky: bool
    """Whether modules do not accept a few rows. Then every number is tried, otherwise only the smallest ones."""
    sizes: set[int] = field(default_factory=set)
    """The numbers that have been found to fit."""


class Stage(nn.Module):
    """This rank's share of a cascade, on its device. Parameters keep their global names: `extractor.…`, `refiners.3.…`.

    Args:
        cascade: the whole network, the same on every rank; the stage uses its modules, not copies.
        runtime: this rank's context; the modules move to its device.
        extractor: where features are computed: for the whole batch on every rank (`replicated`) or on the first one
            (`root`), or on every rank for its share of the batch (`sharded`). The gradients are the same.
        counts: refiners per rank; by default as even as possible.
        placement: for engines of backpropagation, instead of `extractor` and `counts`: `Copies` of the whole cascade,
            or a `Cut`.
        compute: how the modules are executed.
        sync_batchnorm: batch norm takes the statistics of all rows of a microbatch, also of those on other ranks; in a
            sharded extractor, of the whole batch. Names of parameters and buffers stay as they are.

    Raises:
        UsageError: there are fewer refiners than ranks, `counts` does not fit, two parts share a parameter, or a batch
            norm cannot share its statistics.
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
        sync_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        self.placement: Holding = placement or _place(len(cascade.refiners), runtime.cascade_size, extractor, counts)
        _refuse_shared_parameters(cascade, layers=self.placement.extractor == "cut")
        self.runtime = runtime
        self.compute = compute
        self.num_classes = cascade.num_classes
        self.skeleton = Skeleton(cascade)
        self.checked: dict[object, Fits] = {}
        """The inputs for which the cascade has been tried (`stages/check.py`), and the numbers of rows that fit."""
        self.kept: dict[str, Kept] = {}
        """What each part of the cascade keeps, on all ranks, by global name; empty before it has been tried."""
        self._infers = self._extractor_is_frozen = False
        self._inputs = Inputs()
        self.extractor = self._own_extractor(cascade.extractor)
        self.refiners = nn.ModuleDict({str(i): cascade.refiners[i] for i in self.own_refiners})
        self.shared_norms: dict[str, SharedNorms] = {}
        """The batch norms that share their statistics with other ranks, by kind of part (`stages/batch_norm.py`)."""
        if sync_batchnorm:
            self.shared_norms = share_statistics(self.parts(), self.placement, runtime)
        self.to(runtime.device)
        if compute.channels_last and self.extractor is not None:
            self.extractor.to(memory_format=torch.channels_last)
        if compute.compile:
            for name, module in self.parts().items():
                if name != "extractor" or self.placement.extractor != "cut":  # sections compile their own layers
                    module.compile()

    @property
    def own_refiners(self) -> Sequence[int]:
        """The numbers of this rank's refiners, counted from 0 in the whole cascade."""
        return self.placement.refiners(self.runtime.cascade_rank)

    def holders(self, name: str) -> list[int]:
        """The ranks that hold a parameter or buffer, given by its global name."""
        kind, child, *_ = name.split(".")
        names = self.layer_names
        layer = 0 if names == [""] or kind == "refiners" else names.index(child)

        def holds(rank: int) -> bool:
            if kind == "refiners":
                return int(child) in self.placement.refiners(rank)
            return layer in self.placement.extractor_layers(rank, len(names))

        size = self.runtime.cascade_size
        return [rank for rank in range(self.runtime.world_size) if holds(rank % size)]

    @property
    def layer_names(self) -> list[str]:
        """The names of the extractor's layers, if the placement may put them on different ranks; otherwise one empty
        name."""
        return self.skeleton.layer_names if self.placement.extractor == "cut" else [""]

    def _own_extractor(self, extractor: nn.Module) -> nn.Module | None:
        """The whole extractor, nothing, or those of its layers that this rank holds, under their global names."""
        names = self.layer_names
        own = self.placement.extractor_layers(self.runtime.cascade_rank, len(names))
        if len(own) == len(names):
            return extractor
        return named_sequence(extractor, [names[k] for k in own]) if own else None

    def parts(self) -> dict[str, nn.Module]:
        """This rank's extractor and refiners, by global name."""
        extractor = {} if self.extractor is None else {"extractor": self.extractor}
        return extractor | {f"refiners.{i}": module for i, module in self.refiners.items()}

    def freeze_extractor(self) -> None:
        """Put an extractor that is not trained into evaluation mode: no dropout, and its running statistics."""
        self._extractor_is_frozen = True
        if self.extractor is not None:
            self.extractor.eval()

    def trainable_flags(self) -> list[bool]:
        """`requires_grad` of every parameter, in order."""
        return [parameter.requires_grad for parameter in self.parameters()]

    def extract(self, x: Tensor, *, graph: bool) -> TensorTuple:
        """Compute the features of x [b, ...], a tuple of tensors [b, ...], recorded by autograd if `graph`."""
        assert self.extractor is not None, "only a rank that holds the extractor extracts"
        with self._execution("extractor", self.extractor, graph):
            return extract(self._inputs.of("the extractor", self.extractor), self._in_memory_format(x))

    def run_layers(self, layers: nn.Module, x: Tensor, *, graph: bool) -> TensorTuple:
        """Run the whole extractor, or some of its layers on this rank, on an activation x [b, ...]."""
        with self._execution("extractor", layers, graph):
            return as_tuple(self._inputs.of("the extractor", layers)(self._in_memory_format(x)))

    def refine(self, i: int, features: TensorTuple, state: TensorTuple, *, graph: bool) -> TensorTuple:
        """Run refiner i of this rank: from features [b, ...] and a state to the next state, whose first tensor is the
        log-belief [b, C] or [b, T, C]. Recorded by autograd if `graph`."""
        refiner = self.refiners[str(i)]
        with self._execution(f"refiners.{i}", refiner, graph):
            return refine(self._inputs.of(f"refiner {i}", refiner), features, state)

    def sharing(self, statistics: Mapping[str, Sharing]) -> AbstractContextManager[None]:
        """Within, the batch norms that share their statistics do so with these, by kind of part."""
        return self._sharing(statistics) if self.shared_norms else nullcontext()

    @contextmanager
    def _sharing(self, statistics: Mapping[str, Sharing]) -> Iterator[None]:
        with ExitStack() as stack:
            for kind, shared in self.shared_norms.items():
                stack.enter_context(shared.company.joined(statistics[kind]))
            yield

    def accompanied(self) -> AbstractContextManager[None]:
        """Within, those batch norms have the statistics of the rows here, however few, and send nothing."""
        return self.sharing(dict.fromkeys(self.shared_norms, SameRows(2)))

    def unshared_buffers(self) -> list[Tensor]:
        """Those that need not be equal on all ranks with the same parts."""
        norms = [norm for shared in self.shared_norms.values() for norm in shared.norms.values()]
        shared = {id(buffer) for norm in norms for buffer in norm.buffers()}
        return [buffer for buffer in self.buffers() if id(buffer) not in shared]

    def seed(self, name: str, seed: int) -> None:
        """Seed the random numbers of the next forward in training, of the part with this global name."""
        if self._infers:
            return
        seed_generator(self.runtime.device, seed)
        if name in self.kept and self.kept[name].draws:
            seed_host(seed)

    def preserved_generators(self) -> AbstractContextManager[None]:
        """Restore the generators that `seed` seeds at the end, so that a user's own random numbers are not changed."""
        device = self.runtime.device
        draws = any(kept.draws for kept in self.kept.values())
        return undisturbed(device) if draws else preserved_generator(device)

    def _in_memory_format(self, x: Tensor) -> Tensor:
        channels_last = self.compute.channels_last and x.dim() == 4
        return x.contiguous(memory_format=torch.channels_last) if channels_last else x

    @contextmanager
    def inference_mode(self) -> Iterator[None]:
        """Evaluation mode inside; at the end, every module is put back into its own mode."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        self._infers = True
        try:
            yield
        finally:
            self._infers = False
            for module, training in modes:
                module.training = training

    def autocast(self) -> torch.autocast:
        """The autocast context in which modules run."""
        return torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=self.compute.autocast == "bf16")

    @contextmanager
    def _execution(self, name: str, module: nn.Module, graph: bool) -> Iterator[None]:
        # What a module keeps counts each batch once: not in a teacher pass, which the student's will follow.
        counts = graph or self._infers or (name == "extractor" and self._extractor_is_frozen)
        with torch.set_grad_enabled(graph), self.autocast(), nullcontext() if counts else self._undone(name, module):
            yield

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Undo at the end what forwards inside have done to the state that modules keep."""
        with ExitStack() as stack:
            stack.enter_context(self._inputs.unlearned())
            for name, module in self.parts().items():
                stack.enter_context(self._undone(name, module))
            yield

    def _undone(self, name: str, module: nn.Module) -> AbstractContextManager[object]:
        kept = self.kept.get(name)
        if kept is None:  # it has not been tried
            return undone(module, parameters=True)
        return undone_as_seen(module, kept.written, kept.parameters)


def _place(num_refiners: int, num_ranks: int, extractor: ExtractorPlacement, counts: Sequence[int] | None) -> Placement:
    if counts is None:
        return Placement(place_by_count(num_refiners, num_ranks), extractor)
    return Placement(place_as_given(counts, num_refiners, num_ranks), extractor)


def _refuse_shared_parameters(cascade: Cascade, *, layers: bool) -> None:
    """Raises UsageError if two parts share a parameter: on different ranks it would become two, and on one rank it
    would be clipped and updated twice. With `layers`, each layer of the extractor is a part."""
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
                    f"clipped and updated separately: give each part its own parameters{whole}"
                )
