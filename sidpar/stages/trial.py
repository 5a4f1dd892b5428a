"""A first pass over a few real rows. It shows what torch's meta device cannot: the shapes of modules whose forward
looks at data, and what a module keeps from one forward to the next.

No message is sent: ranks exchange what they need through the store. All effects of the pass are undone.
"""

import io
import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from sidpar.cascade.cascade import TensorTuple, at_least_fp32, detach, initial_state, leaves
from sidpar.cascade.history import ROUNDING, ROUNDING_BF16, history
from sidpar.cascade.module_state import undone
from sidpar.cascade.snapshots import GeneratorSnapshot
from sidpar.cascade.specs import (
    CascadeSpecs,
    Spec,
    check_activation,
    check_alike,
    check_belief,
    check_outputs,
    named_sequence,
    specs_of,
)
from sidpar.distributed.device import seed_generator
from sidpar.distributed.exchange import Notes
from sidpar.errors import UsageError, reason
from sidpar.seeding import seed_host, undisturbed
from sidpar.stages.kept import Kept, what_is_kept
from sidpar.stages.stage import Stage

ROWS = 3
"""Enough for most modules: batch norm needs two."""


@dataclass(frozen=True)
class Found:
    """The results of the pass on all ranks."""

    specs: CascadeSpecs
    layers: list[Spec]
    """What each layer of a cut extractor returns."""
    kept: dict[str, Kept]


def try_out(stage: Stage, x: Tensor, *, training: bool) -> Found:
    """One pass over x [b, ...]; for training, also what each part keeps. All ranks call it.

    Raises UsageError, the same on every rank, if a part of the cascade does not accept its inputs.
    """
    notes = stage.runtime.notes("trial")
    trial = _Trial(stage, x.to(stage.runtime.device), notes, training=training)
    with undisturbed(stage.runtime.device), torch.compiler.set_stance("force_eager"):
        trial.run()
    everyone = stage.runtime.exchange("trial", trial.plain())
    if notes is not None:
        notes.remove()
    for rank in everyone:
        if rank["problem"] is not None:
            raise UsageError(rank["problem"])
    specs: dict[int, tuple[Spec, ...]] = {}
    kept: dict[str, Kept] = {}
    for rank in everyone:  # replicas have seen other rows
        for j, found in rank["specs"].items():
            check_alike(trial.spoken(int(j)), _from_plain(found), specs.setdefault(int(j), _from_plain(found)))
        for name, each in rank["kept"].items():
            kept[name] = kept.get(name, Kept()) | Kept(**each)
    return trial.found(specs, kept)


class _OtherRankError(Exception):
    """Another rank failed to compute the inputs that this rank needs."""


class _Trial:
    """One rank's share of the pass: its pieces, in cascade order. Letters: j piece, i refiner."""

    def __init__(self, stage: Stage, x: Tensor, notes: Notes | None, *, training: bool) -> None:
        self._stage, self._x, self._notes, self._training = stage, x, notes, training
        self._layers = stage.layer_names
        self._count = len(self._layers) + stage.placement.num_refiners
        self._values: dict[int, TensorTuple] = {}
        self._specs: dict[int, tuple[Spec, ...]] = {}
        self._kept: dict[str, Kept] = {}
        self._problem: str | None = None

    def run(self) -> None:
        """Run all pieces of this rank. If one of them fails, the ranks that wait for it are told."""
        failed = False
        for j in self._own_pieces:
            if not failed:
                try:
                    self._values[j] = self._run(j)
                    self._specs[j] = specs_of(self._values[j])
                except _OtherRankError:
                    failed = True
                except Exception as error:
                    failed, self._problem = True, self._explain(j, error)
            self._leave(j)

    def plain(self) -> dict[str, Any]:
        """What this rank reports to the others."""
        return {
            "problem": self._problem,
            "specs": {j: [(list(spec.shape), str(spec.dtype)) for spec in found] for j, found in self._specs.items()},
            "kept": {name: asdict(kept) for name, kept in self._kept.items()},
        }

    def found(self, specs: dict[int, tuple[Spec, ...]], kept: dict[str, Kept]) -> Found:
        """The same of all ranks."""
        layers, features = len(self._layers), specs[len(self._layers) - 1]
        example = tuple(spec.empty(1, torch.device("meta")) for spec in features)
        states = [specs_of(initial_state(example, self._stage.num_classes))]
        states += [specs[j] for j in range(layers, self._count)]
        return Found(CascadeSpecs(features, tuple(states)), [specs[j][0] for j in range(layers)], kept)

    def _run(self, j: int) -> TensorTuple:
        given, module, stage = self._given(j), self._module(j), self._stage
        draws: list[str] = []

        def forward(tensors: TensorTuple) -> TensorTuple:
            seed_generator(stage.runtime.device, 0)
            seed_host(0)
            before = _host_generators(stage.runtime.device)
            outputs = self._call(j, tensors)
            draws.extend(name for generator in before for name in generator.changed())
            check_outputs(self.spoken(j), outputs, len(self._x))
            return outputs

        if self._training:
            rounding = ROUNDING_BF16 if stage.compute.autocast == "bf16" else ROUNDING
            tried = history(module, forward, given, rounding)
            if tried.depends_on_unseen:
                raise UsageError(_unseen(self.spoken(j)))
            if tried.made:
                raise UsageError(
                    f"{self.spoken(j)} creates parameters in its first forward ({', '.join(tried.made)}), which "
                    "other ranks and the optimizer do not know: create them in its __init__"
                )
            outputs = detach(tried.result)
            self._kept[self._name(j)] = what_is_kept(module, tried, forward, given, draws=any(draws))
        else:
            with undone(module):
                outputs = detach(forward(given))
        i = j - len(self._layers)
        if i >= 0:
            check_belief(i, outputs, initial_state(self._features(), stage.num_classes), stage.num_classes)
        elif i < -1:
            check_activation(self._layers[j], outputs if len(outputs) > 1 else outputs[0])
        return outputs

    def _given(self, j: int) -> TensorTuple:
        """What piece j is called with."""
        i = j - len(self._layers)
        if i < 0:
            return self._value(j - 1) if j else (self._x,)
        features = self._features()
        state = self._value(j - 1) if i else initial_state(features, self._stage.num_classes)
        return (*leaves(features, trained=self._training), *state)

    def _call(self, j: int, tensors: TensorTuple) -> TensorTuple:
        stage, i, graph = self._stage, j - len(self._layers), self._training
        if i >= 0:
            count = len(self._features())
            return stage.refine(i, tensors[:count], tensors[count:], graph=graph)
        if self._layers == [""]:
            return stage.extract(tensors[0], graph=graph)
        activations = stage.run_layers(self._module(j), tensors[0], graph=graph)
        return activations if i < -1 else tuple(at_least_fp32(tensor) for tensor in activations)

    def _features(self) -> TensorTuple:
        return self._value(len(self._layers) - 1)

    def _value(self, j: int) -> TensorTuple:
        """What piece j returned, here or elsewhere."""
        if j not in self._values:
            if self._notes is None or self._rank in self._holders(j):
                raise _OtherRankError
            note = self._notes.read(self._key(j))
            if not note:
                raise _OtherRankError
            device = self._stage.runtime.device
            self._values[j] = tuple(torch.load(io.BytesIO(note), map_location=device, weights_only=True))
        return self._values[j]

    def _leave(self, j: int) -> None:
        """For the ranks that go on with it: nothing, if it could not be computed."""
        readers = [j + 1] if j + 1 < self._count else []
        if j == len(self._layers) - 1:
            readers = list(range(j + 1, self._count))
        holders = self._holders(j)
        if self._notes is None or self._rank != holders[0]:
            return
        if all(rank in holders for reader in readers for rank in self._holders(reader)):
            return
        buffer = io.BytesIO()
        if j in self._values:
            torch.save(list(self._values[j]), buffer)
        self._notes.leave(self._key(j), buffer.getvalue())

    def _module(self, j: int) -> nn.Module:
        stage, i = self._stage, j - len(self._layers)
        if i >= 0:
            return stage.refiners[str(i)]
        assert stage.extractor is not None, "only a rank that holds a layer runs it"
        return stage.extractor if self._layers == [""] else named_sequence(stage.extractor, [self._layers[j]])

    def _holders(self, j: int) -> list[int]:
        """Ranks of the cascade."""
        placement, i = self._stage.placement, j - len(self._layers)
        return [
            rank
            for rank in range(self._stage.runtime.cascade_size)
            if (i in placement.refiners(rank) if i >= 0 else j in placement.extractor_layers(rank, len(self._layers)))
        ]

    @property
    def _rank(self) -> int:
        return self._stage.runtime.cascade_rank

    @property
    def _own_pieces(self) -> list[int]:
        return [j for j in range(self._count) if self._rank in self._holders(j)]

    def _name(self, j: int) -> str:
        """The global name of a piece."""
        i = j - len(self._layers)
        if i >= 0:
            return f"refiners.{i}"
        return f"extractor.{self._layers[j]}" if self._layers[j] else "extractor"

    def spoken(self, j: int) -> str:
        """The name of a piece in messages."""
        i = j - len(self._layers)
        if i >= 0:
            return f"refiner {i}"
        return f"layer {self._layers[j]} of the extractor" if self._layers[j] else "the extractor"

    def _key(self, j: int) -> str:
        return f"replica {self._stage.runtime.replica}, what {self.spoken(j)} returns"

    def _explain(self, j: int, error: Exception) -> str:
        if isinstance(error, UsageError):
            return str(error)
        given = [list(spec.shape) for spec in specs_of(self._given(j))]
        i = j - len(self._layers)
        if i >= 0:
            count = len(self._features())
            inputs = f"features {_shapes(given[:count])} and a state {_shapes(given[count:])}"
        else:
            inputs = f"inputs of shape {_shapes(given)}"
        return f"{self.spoken(j)} does not take {inputs}, tried with B={len(self._x)}: {reason(error)}"


def _shapes(given: list[list[int]]) -> str:
    return " and ".join(f"[B, *{shape}]" for shape in given)


def _host_generators(device: torch.device) -> list[GeneratorSnapshot]:
    """Those that `seed_generator` does not seed."""
    found = [
        GeneratorSnapshot("Python's", random.getstate, random.setstate),
        GeneratorSnapshot("NumPy's", numpy.random.get_state, numpy.random.set_state),
    ]
    if device.type != "cpu":
        host = torch.default_generator
        found.append(GeneratorSnapshot("torch's for the CPU", host.get_state, host.set_state))
    return found


def _unseen(what: str) -> str:
    return (
        f"{what} returns another result for the same input the next time, although its buffers and attributes are the "
        "same: it reads a global variable, an iterator, an unseeded generator, or an object more than four levels "
        "deep. These can neither be restored after the trial nor saved: keep the value in a buffer or an attribute of "
        "the module"
    )


def _from_plain(found: list[tuple[list[int], str]]) -> tuple[Spec, ...]:
    return tuple(Spec(tuple(shape), getattr(torch, dtype.removeprefix("torch."))) for shape, dtype in found)
