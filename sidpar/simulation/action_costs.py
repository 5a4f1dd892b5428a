"""How long each action takes, in seconds, and how much memory it occupies, in bytes. No torch."""

from functools import cache
from typing import Protocol

from sidpar.schedules.actions import Action, Do, known
from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.cut import Cut
from sidpar.schedules.placement import Placement
from sidpar.simulation.costs import Costs, Piece

INPUT_SHARE = 0.5
"""Share of a piece's backward that computes the gradient of its input, the rest that of its weights."""
RECORDED = (Do.EXTRACT, Do.FORWARD)
"""The verbs that save something only if autograd records them."""


class Prices(Protocol):
    """Asked about every action of every rank, so answers are computed once for all that are alike."""

    def seconds(self, rank: int, action: Action) -> float:
        """How long an action takes; for the start of a message, how long the message takes."""

    def held(self, rank: int, action: Action) -> float:
        """Bytes that this action occupies until another one frees them (`activation_memory.py`)."""


class LocalPrices:
    """The costs of actions in schedules of local learning."""

    def __init__(self, placement: Placement, costs: Costs, layout: BatchLayout) -> None:
        self._placement, self._costs = placement, costs
        self._rows = layout.rows
        self._sizes = [len(rows) for rows in layout.microbatches]
        self._shares, self._largest_share = layout.shard_sizes, layout.padded_shard
        self._extractor = cache(costs.extractor)
        links = costs.links
        self._links = {
            Do.SEND_STATE: links.message,
            Do.START_GATHER: links.all_gather,
            Do.START_BROADCAST: links.broadcast,
            Do.START_SCATTER: links.reduce_scatter,
            Do.START_REDUCE: links.reduce,
            Do.RELEASE_PARAMETER_GRADIENTS: (
                links.replica_all_reduce if placement.extractor == "root" else links.all_reduce
            ),
            Do.RELEASE_REFINER_GRADIENTS: links.replica_all_reduce,
        }
        self._seconds_of, self._bytes_of = cache(self._find_seconds), cache(self._find_bytes)

    def seconds(self, rank: int, action: Action) -> float:
        m = action.microbatch
        return self._seconds_of(action.do, self._shares[rank] if m is None else self._sizes[m], rank, action.refiner)

    def held(self, rank: int, action: Action) -> float:
        m = action.microbatch
        if action.do in RECORDED and not action.graph:
            return 0.0
        return self._bytes_of(action.do, self._shares[rank] if m is None else self._sizes[m], rank, action.refiner)

    def message_bytes(self, do: Do, rows: int, rank: int, refiner: int | None = None) -> float:
        """The size of a message of `rows` rows from a rank; for a collective, of the whole buffer."""
        match do:
            case Do.SEND_STATE:
                return rows * self._costs.state_bytes[self._placement.refiners(rank).stop]
            case Do.START_GATHER:
                return self._rows * self._costs.feature_bytes
            case Do.RELEASE_PARAMETER_GRADIENTS:
                return self._costs.extractor_parameter_bytes
            case Do.RELEASE_REFINER_GRADIENTS:
                refiners = self._placement.refiners(rank) if refiner is None else [refiner]
                return sum(self._costs.refiners[i].trained_bytes for i in refiners)
        return rows * self._costs.feature_bytes

    def _find_seconds(self, do: Do, rows: int, rank: int, refiner: int | None) -> float:
        costs = self._costs
        match do:
            case Do.EXTRACT:
                return costs.overhead + self._extractor(rows)[0]
            case Do.EXTRACTOR_BACKWARD:
                return costs.overhead + self._extractor(rows)[1]
            case Do.FORWARD:
                return costs.overhead + costs.refiners[known(refiner)].forward(rows)
            case Do.BACKWARD:
                return costs.overhead + costs.refiners[known(refiner)].backward(rows)
            case Do.LEARN:  # priced like the loop: what stacking saves or costs is not calibrated
                own = [costs.refiners[i] for i in self._placement.refiners(rank)]
                return costs.overhead + sum(piece.forward(rows) + piece.backward(rows) for piece in own)
            case Do.UPDATE_REFINERS | Do.UPDATE_EXTRACTOR:
                return costs.overhead
        return self._links[do](self.message_bytes(do, rows, rank, refiner))

    def _find_bytes(self, do: Do, rows: int, rank: int, refiner: int | None) -> float:
        costs, ranks = self._costs, self._placement.num_ranks
        match do:
            case Do.EXTRACT:
                # A shard is copied from the batch, and the copy lives as long as what is computed from it.
                copied = costs.input_bytes if self._placement.extractor == "sharded" and ranks > 1 else 0.0
                return rows * copied + sum(layer.saved(rows) for layer in costs.layers)
            case Do.FORWARD:
                return costs.refiners[known(refiner)].saved(rows)
            case Do.LEARN:
                return sum(costs.refiners[i].saved(rows) for i in self._placement.refiners(rank))
            case Do.POST_STATE:
                return self.message_bytes(Do.SEND_STATE, rows, rank - 1)
            # Equal parts of the padded buffer, and the whole.
            case Do.START_GATHER:
                return (ranks + 1) * self._largest_share * costs.feature_bytes
            case Do.START_SCATTER:
                return (ranks + 1) * -(-rows // ranks) * costs.feature_bytes
        return self.message_bytes(do, rows, rank)


class PipelinePrices:
    """The costs of actions in a pipeline of backpropagation with microbatches of `rows` rows."""

    def __init__(self, cut: Cut, costs: Costs, rows: float) -> None:
        self._cut, self._costs, self._rows = cut, costs, rows
        self._pieces = [self._pieces_of(section) for section in range(cut.num_sections)]
        self._seconds_of, self._bytes_of = cache(self._find_seconds), cache(self._find_bytes)

    def seconds(self, rank: int, action: Action) -> float:
        return self._seconds_of(action.do, known(action.section))

    def held(self, rank: int, action: Action) -> float:
        return self._bytes_of(action.do, known(action.section))

    def message_bytes(self, section: int) -> float:
        """The size of what enters a section; its gradient has the same."""
        layers, refiners = self._cut.layers_of(section - 1), self._cut.refiners_of(section - 1)
        if layers and layers.stop < self._cut.num_layers:
            return self._rows * self._costs.layer_bytes[layers.stop - 1]
        return self._rows * (self._costs.feature_bytes + (self._costs.state_bytes[refiners.stop] if refiners else 0.0))

    def _find_seconds(self, do: Do, section: int) -> float:
        pieces, costs = self._pieces[section], self._costs
        backward = sum(piece.backward(self._rows) for piece in pieces)
        match do:
            case Do.SECTION_FORWARD:
                return costs.overhead + sum(piece.forward(self._rows) for piece in pieces)
            case Do.SECTION_BACKWARD:
                return costs.overhead + backward
            # The first section has no input to differentiate: torch leaves its whole backward to the second half.
            case Do.SECTION_INPUT_BACKWARD:
                return costs.overhead + (INPUT_SHARE * backward if section > 0 else 0.0)
            case Do.SECTION_WEIGHT_BACKWARD:
                return costs.overhead + ((1 - INPUT_SHARE) * backward if section > 0 else backward)
        return costs.links.message(self.message_bytes(section if do is Do.SEND_ACTIVATION else section + 1))

    def _find_bytes(self, do: Do, section: int) -> float:
        if do is Do.SECTION_FORWARD:
            return sum(piece.saved(self._rows) for piece in self._pieces[section])
        return self.message_bytes(section if do is Do.AWAIT_ACTIVATION else section + 1)

    def _pieces_of(self, section: int) -> list[Piece]:
        cut, costs = self._cut, self._costs
        own = cut.layers_of(section)
        layers = [costs.layers[k] for k in own] if cut.extractor == "cut" else costs.layers if own else []
        return [*layers, *(costs.refiners[i] for i in cut.refiners_of(section))]
