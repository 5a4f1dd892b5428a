"""The network: one extractor and L refiners, plain modules that know nothing of ranks.

Shapes: images x [B, ...]; features f [B, D] or [B, T, D]; log-belief log p_i [B, C] or [B, T, C].
A *state* is what a refiner hands to the next: a tuple (log-belief, hidden activations ...).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from sidpar.cascade.inputs import Inputs, Tensors
from sidpar.cascade.reads import Absent
from sidpar.errors import UsageError

TensorTuple = tuple[Tensor, ...]


class Shaped(Protocol):
    """Inputs [B, ...] as far as shapes follow from them: a tensor, or what stands for one."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...


class Sample(Shaped, Protocol):
    """Inputs [B, ...] of which a few are looked at."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Tensor: ...


class Cascade(nn.Module):
    """A shared extractor and a chain of refiners, each of which refines the class belief of the one before.

    Args:
        extractor: maps a batch to features, a tensor or a tuple of tensors [B, ...].
        refiners: each maps (features, state) to a state: logits or log-belief [B, C], or a tuple of these and hidden
            activations. The first one's state is the uniform log-belief log p_0 alone. Tuples of one tensor are passed
            as that tensor, so the simplest refiner is `forward(features, log_belief) -> logits`.
        num_classes: the number of classes C.

    Raises:
        UsageError: there is no refiner, or there are fewer than 2 classes.
    """

    def __init__(self, extractor: nn.Module, refiners: Iterable[nn.Module], num_classes: int) -> None:
        super().__init__()
        self.extractor = extractor
        self.refiners = nn.ModuleList(refiners)
        self.num_classes = num_classes
        self._inputs = Inputs()
        if not self.refiners:
            raise UsageError("a cascade needs at least one refiner, got none")
        if num_classes < 2:
            raise UsageError(f"a cascade needs at least 2 classes, got num_classes={num_classes}")

    def forward(self, x: Tensor) -> Tensor:
        """Inference: the last belief p_L, [B, C] or [B, T, C], of inputs x [B, ...]; the prediction is its argmax."""
        *_, last = self.states(x)
        return last[0].exp()

    def beliefs(self, x: Tensor) -> Tensor:
        """All beliefs about inputs x [B, ...]: [L + 1, B, C] or [L + 1, B, T, C], of which the first is the uniform p_0
        and the last one p_L."""
        return torch.stack([state[0].exp() for state in self.states(x)])

    def states(self, x: Tensor) -> Iterator[TensorTuple]:
        """The states after 0, 1, ..., L refiners for inputs x [B, ...], one at a time: each is a tuple that begins with
        the log-belief [B, C] or [B, T, C]."""
        features = extract(self._inputs.of("the extractor", self.extractor), x)
        state = initial_state(features, self.num_classes)
        yield state
        for i, refiner in enumerate(self.refiners):
            state = refine(self._inputs.of(f"refiner {i}", refiner), features, state)
            yield state


def extract(extractor: Callable[..., Tensors], x: Tensor) -> TensorTuple:
    """Features of x, as a tuple."""
    return tuple(at_least_fp32(feature) for feature in as_tuple(extractor(x)))


def initial_state(features: TensorTuple, num_classes: int) -> TensorTuple:
    """log p_0, the uniform belief: [B, T, C] where the first feature is [B, T, D], else [B, C]."""
    first = features[0]
    lead = first.shape[:2] if first.dim() == 3 else first.shape[:1]
    dtype = first.new_zeros(()).real.dtype if is_differentiable(first.dtype) else torch.get_default_dtype()
    return (torch.full((*lead, num_classes), -math.log(num_classes), dtype=dtype, device=first.device),)


def refine(refiner: Callable[..., Tensors], features: TensorTuple, state: TensorTuple) -> TensorTuple:
    """One refiner: the next state, its log-belief normalised in fp32 or better, also under autocast."""
    logits, *hidden = as_tuple(refiner(unwrap(features), unwrap(state)))
    # Outside autocast's reach, since log_softmax of a tensor that is fp32 already stays in fp32. Normalising a
    # log-belief once more changes nothing, so a refiner may return either.
    return (at_least_fp32(logits).log_softmax(dim=-1), *(at_least_fp32(tensor) for tensor in hidden))


def at_least_fp32(tensor: Tensor) -> Tensor:
    """What modules pass to each other is at least fp32, because sums over ranks in bf16 would lose bits."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def is_differentiable(dtype: torch.dtype) -> bool:
    """Whether tensors of this dtype have gradients: real or complex numbers, not integers or booleans."""
    return dtype.is_floating_point or dtype.is_complex


def detach(tensors: TensorTuple) -> TensorTuple:
    return tuple(tensor if isinstance(tensor, Absent) else tensor.detach() for tensor in tensors)


def leaves(tensors: TensorTuple, *, trained: bool = True) -> TensorTuple:
    """The same values as leaves of a new graph: each differentiable one that is here collects a gradient, if
    `trained`."""
    return tuple(
        tensor
        if isinstance(tensor, Absent)
        else tensor.detach().requires_grad_(trained and is_differentiable(tensor.dtype))
        for tensor in tensors
    )


def as_tuple(tensors: Tensors | list[Tensor]) -> TensorTuple:
    return tuple(tensors) if isinstance(tensors, tuple | list) else (tensors,)


def unwrap(tensors: TensorTuple) -> Tensors:
    return tensors[0] if len(tensors) == 1 else tensors
