"""How a cascade is cut into sections for a pipeline of backpropagation, and what each pipeline requires. No torch.

The *pieces* of a cascade, in the order of the forward pass, are the layers of the extractor (one piece if it stays
whole) and the refiners. A *section* is a run of consecutive pieces that is executed as one: what
`torch.distributed.pipelining` calls a stage. A rank holds one section, or two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sidpar.config.groups.choices import CutExtractor, PipelineName
from sidpar.errors import UsageError
from sidpar.schedules.placement import consecutive, even_split, place_by_cost

Order = Literal["loop", "v"]


@dataclass(frozen=True)
class Pipeline:
    """What a pipeline schedule of torch requires of its sections and microbatches."""

    sections_per_rank: int = 1
    order: Order = "loop"
    """Which rank holds section s. `loop`: rank s mod K. `v`: down the ranks and back, so rank 0 holds the first and the
    last section."""
    splits_backward: bool = False
    """Whether the backward for the weights is delayed to fill bubbles."""


PIPELINES: dict[PipelineName, Pipeline] = {
    "naive": Pipeline(),
    "gpipe": Pipeline(),
    "1f1b": Pipeline(),
    "interleaved": Pipeline(2),
    "zero_bubble": Pipeline(2, splits_backward=True),
    "zbv": Pipeline(2, "v", splits_backward=True),
    "dualpipe_v": Pipeline(2, "v", splits_backward=True),
}


def check_microbatches(schedule: PipelineName, microbatches: int, num_ranks: int) -> None:
    """Raises UsageError for numbers of microbatches that the schedule does not support."""
    least = {"1f1b": num_ranks, "dualpipe_v": 2 * num_ranks}.get(schedule, 1)
    given = f"schedule={schedule} on {num_ranks} ranks with microbatches={microbatches}"
    if schedule == "naive" and microbatches != 1:
        raise UsageError(f"{given}: naive has one microbatch; set microbatches=1, or use schedule=gpipe")
    if microbatches < least:
        raise UsageError(
            f"{given}: it needs at least {least} microbatches; set microbatches={least}, or use schedule=gpipe"
        )
    rounds = max(1, microbatches // num_ranks)
    if schedule in ("interleaved", "zero_bubble") and microbatches % rounds:
        raise UsageError(
            f"{given}: it runs in {rounds} rounds of equal length, so microbatches must be a multiple of {rounds}; "
            f"use {microbatches - microbatches % num_ranks}, a multiple of the number of ranks"
        )


@dataclass(frozen=True)
class Cut:
    """The sections of a cascade, and their ranks. `counts[s]` is the number of pieces of section s."""

    counts: tuple[int, ...]
    num_layers: int
    """The number of pieces of the extractor: its layers if `extractor` is `cut`, 1 if it is `root`."""
    num_ranks: int
    order: Order = "loop"
    extractor: CutExtractor = "root"

    @property
    def num_refiners(self) -> int:
        return sum(self.counts) - self.num_layers

    @property
    def num_sections(self) -> int:
        return len(self.counts)

    @cached_property
    def _pieces(self) -> list[range]:
        return consecutive(self.counts)

    def layers_of(self, section: int) -> range:
        """The extractor's layers in a section."""
        pieces = self._pieces[section]
        return range(min(pieces.start, self.num_layers), min(pieces.stop, self.num_layers))

    def refiners_of(self, section: int) -> range:
        """The refiners in a section."""
        pieces = self._pieces[section]
        return range(max(pieces.start - self.num_layers, 0), max(pieces.stop - self.num_layers, 0))

    def rank_of(self, section: int) -> int:
        """The rank that holds a section."""
        lap, place = divmod(section, self.num_ranks)
        return self._at(lap, place)

    def sections(self, rank: int) -> list[int]:
        """The sections that a rank holds, in the order of the forward pass."""
        laps = range(self.num_sections // self.num_ranks)
        return [lap * self.num_ranks + self._at(lap, rank) for lap in laps]

    def _at(self, lap: int, place: int) -> int:
        """The rank at a place of a lap; the place of a rank, as well."""
        return self.num_ranks - 1 - place if self.order == "v" and lap % 2 else place

    def refiners(self, rank: int) -> list[int]:
        """The refiners that a rank holds."""
        return [i for section in self.sections(rank) for i in self.refiners_of(section)]

    def extractor_layers(self, rank: int, total: int) -> list[int]:
        """Which of the extractor's `total` layers a rank holds."""
        assert total == self.num_layers, "the cut was made for another extractor"
        return [layer for section in self.sections(rank) for layer in self.layers_of(section)]


def make_cut(
    schedule: PipelineName,
    extractor: CutExtractor,
    num_ranks: int,
    layers: Sequence[float],
    refiners: Sequence[float],
    *,
    counts: Sequence[int] | None = None,
    by_cost: bool = True,
) -> Cut:
    """Cut a cascade into sections for a pipeline of backpropagation.

    Args:
        schedule: the pipeline's schedule, which decides how many sections a rank has.
        extractor: `root`, to keep the extractor whole on rank 0, or `cut`, to spread its layers over ranks.
        num_ranks: K.
        layers: cost of each of the extractor's layers, in any unit; if `extractor` is `root`, their sum counts.
        refiners: cost of each refiner, in the same unit.
        counts: pieces per section (with a `root` extractor: refiners per section), instead of `by_cost`.
        by_cost: make the most expensive section as cheap as possible; otherwise give every section equally many pieces.

    Returns:
        The placement for a `Stage` and a `PipelineEngine`.

    Raises:
        UsageError: there are fewer pieces than sections, or `counts` does not fit.
    """
    pipeline = PIPELINES[schedule]
    num_sections = num_ranks * pipeline.sections_per_rank
    whole = extractor == "root"
    if whole:
        layers = [sum(layers)]
    movable = list(refiners) if whole else [*layers, *refiners]
    what = "refiners" if whole else "layers and refiners"
    if len(movable) < num_sections:
        raise UsageError(
            f"schedule={schedule} cuts the cascade into {num_sections} sections, {pipeline.sections_per_rank} on each "
            f"of {num_ranks} ranks, but there are only {len(movable)} {what}: start fewer ranks, use more refiners"
            + (", or cut the extractor too (extractor=cut)" if whole else "")
        )
    if counts is not None and (len(counts) != num_sections or sum(counts) != len(movable) or min(counts) < 1):
        raise UsageError(
            f"placement {list(counts)} has {len(counts)} sections and {sum(counts)} {what}, but schedule={schedule} "
            f"on {num_ranks} ranks needs {num_sections} numbers of at least 1 that add up to {len(movable)}"
        )
    if counts is None and by_cost:
        counts = place_by_cost(movable, num_sections, sum(layers) if whole else 0.0)
    elif counts is None:
        counts = even_split(len(movable), num_sections)
    if whole:
        counts = [counts[0] + 1, *counts[1:]]
    return Cut(tuple(counts), len(layers), num_ranks, pipeline.order, extractor)
