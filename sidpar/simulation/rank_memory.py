"""Memory that each rank needs, by kind, as `profiler/memory.py` measures it. No torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sidpar.simulation.costs import Piece


@dataclass(frozen=True)
class Footprint:
    """Bytes on one rank. Not included: the dataset, CUDA's context and libraries, and what the allocator rounds up."""

    parameters: float
    """Parameters and buffers of modules."""
    gradients: float
    optimizer_state: float
    versions: float
    """Weights and gradients of a streaming extractor for batches in flight."""
    saved_activations: float
    communication_buffers: float

    @property
    def total(self) -> float:
        return float(sum(asdict(self).values()))


def footprint(
    extractor: Sequence[Piece],
    refiners: Sequence[Piece],
    *,
    state_per_byte: float,
    trains_extractor: bool = True,
    versions: int = 0,
    saved_activations: float,
    communication_buffers: float,
) -> Footprint:
    """The memory of a rank that holds these pieces.

    Args:
        state_per_byte: the optimizer's state, in bytes per byte of trained parameters.
        versions: S + 1 versions of a streaming extractor, which has no gradient besides theirs.
    """
    in_extractor = sum(piece.trained_bytes for piece in extractor) if trains_extractor else 0.0
    in_refiners = sum(piece.trained_bytes for piece in refiners)
    return Footprint(
        parameters=sum(piece.held_bytes for piece in (*extractor, *refiners)),
        gradients=in_refiners + (0.0 if versions else in_extractor),
        optimizer_state=state_per_byte * (in_extractor + in_refiners),
        versions=2 * versions * in_extractor,
        saved_activations=saved_activations,
        communication_buffers=communication_buffers,
    )
