"""Whether a cut network computes what the network computes, and what crosses its cuts: found by running a sample."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sidpar.cascade.cascade import TensorTuple, as_tuple
from sidpar.cascade.module_state import undone
from sidpar.cascade.snapshots import close
from sidpar.errors import UsageError, reason
from sidpar.models.cutting.heads import BeliefHead
from sidpar.models.cutting.segment import Segment
from sidpar.models.cutting.tracing import in_mode
from sidpar.seeding import seed_host, seeded, undisturbed

_ROWS = 2
"""Of the sample: batch norm needs two."""
_TOLERANCE = 1e-4


def seams_of(network: nn.Module, segments: Sequence[Segment], sample: Tensor, num_classes: int) -> list[TensorTuple]:
    """What each segment returns for the sample in evaluation mode. Raises UsageError unless all of them in turn compute
    what the network computes, in each mode in which they call something else."""
    seams: list[TensorTuple] = []
    both = any(segment.depends_on_mode for segment in segments)
    for training in (True, False) if both and sample.device.type == "cpu" else (False,):  # masks of GPUs do not repeat
        with torch.no_grad(), as_if_alone(network, segments, sample, training=training):
            try:
                expected = network(sample.clone())
            except Exception as error:
                raise UsageError(
                    f"the network does not take a sample of shape {list(sample.shape)}: {reason(error)}"
                ) from error
        if not isinstance(expected, Tensor) or expected.shape != (len(sample), num_classes):
            found = list(expected.shape) if isinstance(expected, Tensor) else f"a {type(expected).__name__}"
            raise UsageError(
                f"the network returns {found} for {len(sample)} inputs, but with num_classes={num_classes} it must "
                f"return logits [{len(sample)}, {num_classes}]: give it another last layer, or switch off what it "
                "returns besides"
            )
        values: TensorTuple = (sample.clone(),)
        seams = []
        with torch.no_grad(), as_if_alone(network, segments, sample, training=training):
            for segment in segments:
                values = called(segment, values)
                seams.append(tuple(value.clone() if isinstance(value, Tensor) else value for value in values))
        if not close(values[0], expected, _TOLERANCE):
            raise UsageError(
                f"in {'training' if training else 'evaluation'} mode the network computes something else in one piece "
                "than in parts: its forward, or that of a module around a point, does what torch.fx does not see, a "
                "branch by a type for one; choose points outside of that module"
            )
    return seams


@contextmanager
def as_if_alone(network: nn.Module, segments: Sequence[Segment], sample: Tensor, *, training: bool) -> Iterator[None]:
    """In this mode, with the same random numbers each time; what forwards do to the network is undone."""
    together = nn.ModuleList([network, *segments])
    with in_mode(together, training=training), undone(network), undisturbed(sample.device):
        seed_host(0)
        yield


def called(segment: Segment, values: TensorTuple) -> TensorTuple:
    return as_tuple(segment(*values))


def two_rows(sample: Tensor) -> Tensor:
    """Random numbers of the sample's shape, since those of a sample may all be 0."""
    if sample.dim() < 2 or not len(sample):
        raise UsageError(f"sample must be an input with its batch, [n, ...], got one of shape {list(sample.shape)}")
    rows = sample[:1].expand(_ROWS, *sample.shape[1:]).clone()
    if not rows.is_floating_point():
        return rows
    with seeded("sample of a backbone"):
        return torch.randn(rows.shape, dtype=rows.dtype).to(rows.device)


def check_seam(name: str, values: Sequence[object]) -> None:
    """Raises UsageError for what cannot travel."""
    for value in values:
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != _ROWS:
            what = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise UsageError(
                f"a cut before {name!r} divides the network where {what} is kept for later, for {_ROWS} rows, and only "
                "tensors [B, ...] travel: choose another point, or let the network take it from what it works on"
            )


def check_head(head: BeliefHead, activation: Tensor, num_classes: int) -> None:
    """Raises UsageError unless a head, perhaps a user's own, maps such activations to logits."""
    with torch.no_grad(), in_mode(head, training=False):  # nothing is undone: lazy layers get their sizes here
        try:
            logits = head.body(activation.clone())
        except Exception as error:
            raise UsageError(
                f"head does not take a hidden activation {list(activation.shape)}: {reason(error)}"
            ) from error
    if not isinstance(logits, Tensor) or logits.shape != (len(activation), num_classes):
        found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UsageError(
            f"head maps a hidden activation {list(activation.shape)} to {found}, but must map it to logits "
            f"[{len(activation)}, {num_classes}]"
        )
