"""Measured costs as plain data, which goes from rank to rank and into files. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from sidpar.errors import UsageError
from sidpar.simulation.costs import Costs, Curve, Link, Links, Piece


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
        raise UsageError(f"these are not costs as a plan writes them ({error!r}): measure them again") from error
    if (len(costs.state_bytes), len(costs.layer_bytes)) != (len(costs.refiners) + 1, len(costs.layers)):
        raise UsageError("costs need bytes of a state for each refiner and one more, and of what each layer returns")
    return costs


def median_costs(measured: Sequence[Costs]) -> Costs:
    """The median time of each piece over several measurements of one network."""
    layers, refiners = (
        [_median_piece(pieces) for pieces in zip(*(getattr(costs, kind) for costs in measured), strict=True)]
        for kind in ("layers", "refiners")
    )
    return replace(measured[0], layers=layers, refiners=refiners)


def _piece(plain: Mapping[str, Any]) -> Piece:
    forward, backward = (_curve(plain[way]) for way in ("forward", "backward"))
    return Piece(**{**plain, "forward": forward, "backward": backward})


def _curve(plain: Mapping[str, Any]) -> Curve:
    curve = Curve(tuple(plain["rows"]), tuple(plain["seconds"]))
    if not curve.rows or not min(curve.rows) > 0 or not min(curve.seconds) >= 0:
        raise UsageError(f"costs need rows > 0 and seconds >= 0, got {curve}")
    return curve


def _median_piece(pieces: Sequence[Piece]) -> Piece:
    forward, backward = (
        _median_curve(curves) for curves in zip(*((p.forward, p.backward) for p in pieces), strict=True)
    )
    return replace(pieces[0], forward=forward, backward=backward)


def _median_curve(curves: Sequence[Curve]) -> Curve:
    return Curve(curves[0].rows, tuple(median(each) for each in zip(*(curve.seconds for curve in curves), strict=True)))
