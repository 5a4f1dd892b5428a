"""The shapes and dtypes of what the modules of a cascade pass to each other, found without computing and without a
message.

A copy of the cascade on torch's `meta` device, which has shapes but no data, is run once per kind of input. So both
sides of every message know its shape and dtype beforehand, and a module that does not fit is refused at once.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sidpar.cascade.cascade import Cascade, TensorTuple, extract, initial_state, refine
from sidpar.cascade.duplicate import duplicate
from sidpar.cascade.module_state import undone
from sidpar.cascade.reads import find_reads
from sidpar.errors import UsageError, reason
from sidpar.seeding import undisturbed

_BATCH = 3  # an arbitrary batch size, to check that modules keep it as the first dimension


class Spec(NamedTuple):
    """A tensor's shape without the batch dimension, and its dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def empty(self, batch: int, device: torch.device) -> Tensor:
        return torch.empty((batch, *self.shape), dtype=self.dtype, device=device)

    def zeros(self, batch: int, device: torch.device) -> Tensor:
        return torch.zeros((batch, *self.shape), dtype=self.dtype, device=device)


@dataclass(frozen=True)
class CascadeSpecs:
    """The specs of features and states. `states[i]` is what refiner i receives, for i = 0..L; `states[L]` is the
    cascade's output."""

    features: tuple[Spec, ...]
    states: tuple[tuple[Spec, ...], ...]

    @property
    def seams(self) -> tuple[tuple[Spec, ...], ...]:
        """The features, and what each refiner receives."""
        return (self.features, *self.states[:-1])

    def describe(self) -> dict[str, Any]:
        """Plain data, for the comparison between ranks."""
        return {"features": str(self.features)} | {f"state {i}": str(state) for i, state in enumerate(self.states)}


class Skeleton:
    """The cascade's shapes, kept on every rank although a rank holds only its share of the modules.

    Raises UsageError for a cascade that cannot be copied or saved, or whose parameters have no shape yet.
    """

    def __init__(self, cascade: Cascade) -> None:
        _check_tensors(cascade)
        # Tensors named in the memo are not copied but replaced, so no second cascade is ever in memory.
        memo: dict[int, object] = {id(b): b.to("meta") for b in cascade.buffers()}
        memo |= {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in cascade.parameters()}
        try:
            self._cascade = duplicate(cascade, memo, device="meta")
        except Exception as error:
            raise UsageError(
                f"the cascade cannot be copied ({error}): a module holds a tensor that is neither parameter nor "
                "buffer; register it as a buffer"
            ) from error
        self._cache: dict[Spec, CascadeSpecs] = {}
        self._learned: dict[Spec, list[Spec]] = {}
        self._refused: dict[Spec, UsageError] = {}
        self._reads: dict[Spec, tuple[frozenset[int], ...] | None] = {}
        self.fingerprint = fingerprint(cascade)

    def state_dict(self) -> dict[str, Tensor]:
        """The whole cascade's names, shapes and dtypes, as meta tensors."""
        return dict(self._cascade.state_dict())

    @property
    def extractor_is_trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self._cascade.extractor.parameters())

    def specs(self, x: Tensor) -> CascadeSpecs:
        """The specs for inputs like x [B, ...]. Raises UsageError naming the module that does not fit."""
        key = _like(x)
        if key in self._refused:
            raise self._refused[key]
        if key not in self._cache:
            try:
                with self._undone():
                    self._cache[key] = self._infer(key)
            except UsageError as error:
                self._refused[key] = error
                raise
        return self._cache[key]

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Undo what forwards inside do: the copy shares the cascade's hooks, and so what they keep."""
        with undisturbed(torch.device("cpu")), undone(self._cascade):
            yield

    def can_infer(self, x: Tensor) -> bool:
        """Whether `specs` can be inferred for such inputs. For modules whose forward looks at data, they cannot."""
        try:
            self.specs(x)
        except UsageError:
            return False
        return True

    def learn(self, x: Tensor, specs: CascadeSpecs, layers: list[Spec]) -> None:
        """Keep what a pass over real rows has shown for inputs like x, where specs cannot be inferred. `layers` are
        those of an extractor that is cut."""
        self._refused.pop(_like(x), None)
        self._cache[_like(x)], self._learned[_like(x)] = specs, layers

    def reads(self, x: Tensor) -> tuple[frozenset[int], ...] | None:
        """Of each feature, the refiners that read it, for inputs like x [B, ...], in training or evaluation mode. None
        where that cannot be inferred: then each may read all."""
        key, specs = _like(x), self.specs(x)
        if key not in self._reads:
            seams = (tuple(spec.zeros(_BATCH, torch.device("meta")) for spec in seam) for seam in specs.seams)
            with self._undone():
                self._reads[key] = None if key in self._learned else find_reads(self._cascade.refiners, refine, *seams)
        return self._reads[key]

    @property
    def refiners(self) -> nn.ModuleList:
        """All refiners, on the meta device."""
        return self._cascade.refiners

    @property
    def layer_names(self) -> list[str]:
        """The names of the extractor's layers, if it is a plain Sequential; otherwise one name for the whole
        extractor."""
        return layer_names(self._cascade.extractor)

    @torch.no_grad()
    def layers(self, x: Tensor) -> list[Spec]:
        """What each layer of a Sequential extractor returns for inputs like x [B, ...]. Raises UsageError if it cannot
        be cut."""
        extractor = self._cascade.extractor
        if self.layer_names == [""]:
            raise UsageError(
                f"extractor=cut needs an extractor that is an nn.Sequential, whose layers can lie on different ranks, "
                f"but it is a {type(extractor).__name__}: use extractor=root"
            )
        self.specs(x)  # refuses inputs that do not fit, with the better message
        if _like(x) in self._learned:
            return self._learned[_like(x)]
        activation: Any = _like(x).empty(_BATCH, torch.device("meta"))
        specs: list[Spec] = []
        with self._undone():
            for name in self.layer_names:
                activation = named_sequence(extractor, [name])(activation)
                check_activation(name, activation)
                specs += specs_of((activation,))
        return specs

    def without_gradient(self, x: Tensor, heads: Sequence[int]) -> list[str] | None:
        """The trained parameters on which the beliefs of these refiners do not depend, for inputs like x [B, ...]. None
        where that cannot be inferred."""
        if _like(x) in self._learned:
            return None
        sample = _like(x).empty(_BATCH, torch.device("meta"))
        with torch.enable_grad(), self._undone():
            beliefs = [state[0] for state in self._cascade.states(sample)][1:]
        reached = _leaves([beliefs[i] for i in heads])
        return [name for name, p in self._cascade.named_parameters() if p.requires_grad and id(p) not in reached]

    @torch.no_grad()
    def _infer(self, sample: Spec) -> CascadeSpecs:
        cascade = self._cascade
        shape = list(sample.shape)
        try:
            features = extract(cascade.extractor, sample.empty(_BATCH, torch.device("meta")))
        except Exception as error:
            raise UsageError(
                f"the extractor does not take inputs of shape [B, *{shape}], tried on torch's meta device: "
                f"{reason(error)}"
            ) from error
        check_outputs("the extractor", features, _BATCH)
        state = first = initial_state(features, cascade.num_classes)
        states = [specs_of(state)]
        for i, refiner in enumerate(cascade.refiners):
            try:
                state = refine(refiner, features, state)
            except Exception as error:
                raise UsageError(
                    f"refiner {i} does not take features {specs_of(features)} and state {states[-1]}: {reason(error)}"
                ) from error
            check_outputs(f"refiner {i}", state, _BATCH)
            check_belief(i, state, first, cascade.num_classes)
            states.append(specs_of(state))
        return CascadeSpecs(specs_of(features), tuple(states))


def layer_names(extractor: nn.Module) -> list[str]:
    """The names of a Sequential's layers, in order and with repetitions; [""] for a module with a forward of its
    own."""
    plain = isinstance(extractor, nn.Sequential) and type(extractor).forward is nn.Sequential.forward
    return list(extractor._modules) if plain else [""]


def named_sequence(extractor: nn.Module, names: list[str]) -> nn.Sequential:
    """Some layers of a Sequential as one, under the names they have there."""
    return nn.Sequential(OrderedDict((name, extractor.get_submodule(name)) for name in names))


def fingerprint(cascade: Cascade) -> str:
    """A digest of the weights. Ranks must start from the same weights, or they would train different networks."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in cascade.state_dict().items():
        sample = tensor.flatten()[:: max(1, tensor.numel() // 256)]  # enough to tell seeds apart, at any size
        digest.update(f"{name} {list(tensor.shape)} {sample.double().tolist()}".encode())
    return digest.hexdigest()


def _leaves(tensors: Sequence[Tensor]) -> set[int]:
    """The ids of the parameters on which any of these tensors depend, by autograd's graph."""
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen, leaves = set(), set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
            if hasattr(node, "variable"):
                leaves.add(id(node.variable))
    return leaves


def _check_tensors(cascade: Cascade) -> None:
    """Raises UsageError unless everything to save is a parameter or a buffer with a known shape."""
    tensors = dict([*cascade.named_parameters(remove_duplicate=False), *cascade.named_buffers(remove_duplicate=False)])
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise UsageError(
                f"{name} has no shape before the first batch (it belongs to a lazy layer, such as nn.LazyLinear): give "
                "the layer its sizes, or run a batch through the cascade once it is built"
            )
        if tensor.layout != torch.strided:
            raise UsageError(
                f"{name} is sparse ({tensor.layout}), but checkpoints hold dense tensors only: register it as a "
                "dense tensor, and make it sparse in forward"
            )
    for name in cascade.state_dict():
        if name not in tensors:
            raise UsageError(
                f"{name} is in the cascade's state_dict, but it is neither a parameter nor a buffer, and checkpoints "
                "hold only these: keep it in a buffer, and use no get_extra_state and no hooks on the state_dict"
            )


def specs_of(tensors: TensorTuple) -> tuple[Spec, ...]:
    return tuple(Spec(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors)


def check_outputs(what: str, tensors: TensorTuple, batch: int) -> None:
    """Raises UsageError if what a module returns for `batch` rows cannot be passed on."""
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else f"sparse ({tensor.layout})"
            raise UsageError(
                f"{what} returns a {kind} tensor, but modules of a cascade can pass on dense ones only: return "
                "to_dense(), and convert it where it is used"
            )
        if tensor.dim() == 0 or tensor.shape[0] != batch:
            raise UsageError(
                f"{what} returns a tensor of shape {list(tensor.shape)} for a batch of {batch}: "
                "the first dimension must be the batch"
            )


def check_alike(what: str, found: tuple[Spec, ...], expected: tuple[Spec, ...]) -> None:
    """Raises UsageError if a module returns other shapes or dtypes than expected."""
    if found != expected:
        raise UsageError(
            f"{what} returned tensors of shapes {_spoken(found)}, but {_spoken(expected)} when its shapes were "
            "inferred: the shapes that a module returns must not depend on data or on the training mode"
        )


def _spoken(specs: tuple[Spec, ...]) -> str:
    return " and ".join(f"[B, {', '.join(map(str, spec.shape))}] {spec.dtype}" for spec in specs)


def check_activation(name: str, activation: object) -> None:
    """Raises UsageError if what a layer of a cut extractor returns cannot be passed on."""
    if not isinstance(activation, Tensor):
        raise UsageError(
            f"extractor=cut: layer {name} of the extractor returns a {type(activation).__name__}, but layers of a "
            "cut extractor must return one tensor: use extractor=root"
        )


def check_belief(i: int, state: TensorTuple, first: TensorTuple, num_classes: int) -> None:
    """Raises UsageError if refiner i returns a belief of another shape than the initial one."""
    found, expected = specs_of(state)[0], specs_of(first)[0]
    if found.shape != expected.shape:
        raise UsageError(
            f"refiner {i} returns a belief of shape [B, *{list(found.shape)}], but the cascade has "
            f"num_classes={num_classes}, so it must be [B, *{list(expected.shape)}]"
        )


def _like(x: Tensor) -> Spec:
    """What inputs that are alike have in common."""
    return Spec(tuple(x.shape[1:]), x.dtype)
