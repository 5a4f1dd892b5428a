"""The inputs of predictions: the cost of each piece of a cascade, and of each kind of message. No torch.

Costs go from rank to rank and into files as plain data.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from sidpar.errors import UsageError


@dataclass(frozen=True)
class Curve:
    """Seconds as a function of rows: linear between measured sizes, in proportion outside of them."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, rows: float) -> float:
        if rows <= 0:
            return 0.0
        right = bisect_left(self.rows, rows)
        if right in (0, len(self.rows)):
            end = 0 if right == 0 else -1
            return self.seconds[end] * rows / self.rows[end]
        share = (rows - self.rows[right - 1]) / (self.rows[right] - self.rows[right - 1])
        return (1 - share) * self.seconds[right - 1] + share * self.seconds[right]


@dataclass(frozen=True)
class Piece:
    """A layer of the extractor, or a refiner."""

    forward: Curve
    backward: Curve
    saved_bytes: float = 0.0
    """Bytes that autograd saves per row, until the backward."""
    trained_bytes: float = 0.0
    """Bytes of its trained parameters, each of which has a gradient and an optimizer state."""
    held_bytes: float = 0.0
    """Bytes of all its parameters and buffers."""
    saved_fixed: float = 0.0
    """Bytes that autograd saves besides, whatever the number of rows: weights cast by autocast."""
    device: Curve | None = None
    """On a GPU: seconds of the GPU for forward and backward together. `forward` and `backward` are what limits a
    step."""
    launch: Curve | None = None
    """On a GPU: seconds of the host to queue them."""

    def saved(self, rows: float) -> float:
        """Bytes that autograd saves for so many rows."""
        return self.saved_fixed + rows * self.saved_bytes if rows else 0.0


@dataclass(frozen=True)
class Link:
    """Seconds = latency + bytes * seconds_per_byte."""

    latency: float = 0.0
    seconds_per_byte: float = 0.0

    def __call__(self, size: float) -> float:
        return self.latency + size * self.seconds_per_byte


def fit_link(sizes: Sequence[float], seconds: Sequence[float]) -> Link:
    """Latency and bandwidth from measured messages, by weighted least squares: relative errors count, or the largest
    size would decide the latency. Neither is negative."""
    weights = 1 / np.array(seconds)
    design = np.stack([np.ones(len(sizes)), np.array(sizes)], axis=1) * weights[:, None]
    latency, slope = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)[0]
    return Link(max(0.0, float(latency)), max(0.0, float(slope)))


@dataclass(frozen=True)
class Links:
    """One link per kind of message; of a collective, `size` is the whole buffer. Collectives are over the K ranks of a
    cascade, but for `all_reduce`, over the world, and `replica_all_reduce`, over the R ranks of one place in all
    replicas."""

    message: Link = Link()
    all_gather: Link = Link()
    reduce_scatter: Link = Link()
    broadcast: Link = Link()
    reduce: Link = Link()
    all_reduce: Link = Link()
    replica_all_reduce: Link = Link()


def ring_links(latency: float, bandwidth: float, num_ranks: int, num_replicas: int = 1) -> Links:
    """Links of ranks that are all alike, from seconds per message and bytes per second: collectives go round a ring of
    n ranks in n - 1 hops, an all-reduce twice."""
    size = num_ranks // num_replicas
    hops, share = size - 1, (size - 1) / size
    around = Link(hops * latency, share / bandwidth)
    to_one = Link(hops * latency, 1 / bandwidth)
    twice, twice_over_replicas = (
        Link(2 * (n - 1) * latency, 2 * (n - 1) / n / bandwidth) for n in (num_ranks, num_replicas)
    )
    return Links(Link(latency, 1 / bandwidth), around, around, to_one, to_one, twice, twice_over_replicas)


@dataclass(frozen=True)
class Costs:
    """All costs that a prediction is made from."""

    layers: Sequence[Piece]
    """The extractor's layers; one piece for the whole extractor, if it cannot be cut."""
    refiners: Sequence[Piece]
    links: Links = field(default_factory=Links)
    feature_bytes: float = 0.0
    """Bytes of the features per row."""
    state_bytes: Sequence[float] = ()
    """`state_bytes[i]`: bytes per row of the state that refiner i receives."""
    layer_bytes: Sequence[float] = ()
    """Bytes per row of what each layer of the extractor returns."""
    input_bytes: float = 0.0
    """Bytes per row of the images."""
    reads: Sequence[Sequence[int]] | None = None
    """The refiners that read each feature; None: all of them read all features."""
    overhead: float = 0.0
    """Seconds that the engine itself adds to every piece of work: losses, bookkeeping, the start of messages."""

    @property
    def extractor_parameter_bytes(self) -> float:
        """Bytes of the extractor's trained parameters, and so of its gradients."""
        return sum(piece.trained_bytes for piece in self.layers)

    @property
    def parameter_bytes(self) -> float:
        """Bytes of the whole cascade's trained parameters."""
        return self.extractor_parameter_bytes + sum(piece.trained_bytes for piece in self.refiners)

    def extractor(self, rows: float) -> tuple[float, float]:
        """Forward and backward of the whole extractor."""
        return sum(p.forward(rows) for p in self.layers), sum(p.backward(rows) for p in self.layers)

    def loads(self, rows: float) -> tuple[list[float], list[float]]:
        """Forward and backward together, of each layer and of each refiner: what placements share out."""
        layers, refiners = ([p.forward(rows) + p.backward(rows) for p in ps] for ps in (self.layers, self.refiners))
        return layers, refiners


def to_plain(costs: Costs) -> dict[str, Any]:
    """Numbers in lists and dictionaries, as JSON has them."""
    return asdict(costs)


def from_plain(plain: Mapping[str, Any]) -> Costs:
    """What `to_plain` gave, also by way of JSON. Raises UsageError for anything else."""
    try:
        pieces = {kind: [_piece(piece) for piece in plain[kind]] for kind in ("layers", "refiners")}
        links = Links(**{name: Link(**link) for name, link in plain["links"].items()})
        costs = Costs(**{**plain, **pieces, "links": links})
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(f"these are not the costs that a plan writes ({error!r}): measure them again") from error
    if (len(costs.state_bytes), len(costs.layer_bytes)) != (len(costs.refiners) + 1, len(costs.layers)):
        raise UsageError("costs need state_bytes for each refiner and one more, and layer_bytes for each layer")
    return costs


def median_costs(measured: Sequence[Costs]) -> Costs:
    """The median time of each piece over several measurements of one network."""
    layers, refiners = (
        [_median_piece(pieces) for pieces in zip(*(getattr(costs, kind) for costs in measured), strict=True)]
        for kind in ("layers", "refiners")
    )
    return replace(measured[0], layers=layers, refiners=refiners)


def _piece(plain: Mapping[str, Any]) -> Piece:
    curves = {name: _curve(plain[name]) for name in ("forward", "backward")}
    curves |= {name: _curve(plain[name]) for name in ("device", "launch") if plain.get(name) is not None}
    return Piece(**{**plain, **curves})


def _curve(plain: Mapping[str, Any]) -> Curve:
    curve = Curve(tuple(plain["rows"]), tuple(plain["seconds"]))
    if not curve.rows or not min(curve.rows) > 0 or not min(curve.seconds) >= 0:
        raise UsageError(f"costs need rows > 0 and seconds >= 0, got {curve}")
    return curve


def _median_piece(pieces: Sequence[Piece]) -> Piece:
    forward, backward = (_median_curve([getattr(p, way) for p in pieces]) for way in ("forward", "backward"))
    device, launch = ([curve for p in pieces if (curve := getattr(p, kind))] for kind in ("device", "launch"))
    return replace(
        pieces[0],
        forward=forward,
        backward=backward,
        device=_median_curve(device) if device else None,
        launch=_median_curve(launch) if launch else None,
    )


def _median_curve(curves: Sequence[Curve]) -> Curve:
    return Curve(curves[0].rows, tuple(median(each) for each in zip(*(curve.seconds for curve in curves), strict=True)))
