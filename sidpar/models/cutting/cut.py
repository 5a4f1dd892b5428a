"""`sidpar.cut_backbone`: a network whose layers are known by name, as a cascade."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from sidpar.cascade.cascade import Cascade, TensorTuple, leaves
from sidpar.config.groups.choices import BeliefEntry, HeadName, HiddenLayout, Pooling
from sidpar.errors import UsageError
from sidpar.models.cutting.arithmetic import counted
from sidpar.models.cutting.checks import as_if_alone, called, check_head, check_seam, seams_of, two_rows
from sidpar.models.cutting.heads import BeliefHead, HeadBuilder, has_batch_norm, make_body, own_body
from sidpar.models.cutting.layouts import Hidden, find_layout, is_read_last
from sidpar.models.cutting.points import Points, balanced
from sidpar.models.cutting.refiner import LayersRefiner, make_reader
from sidpar.models.cutting.segment import Segment


def cut_backbone(
    network: nn.Module,
    points: Sequence[str | int] | None = None,
    *,
    num_classes: int,
    sample: Tensor,
    num_refiners: int | None = None,
    extractor_share: float | None = None,
    head: HeadName | HeadBuilder | None = None,
    pool: Pooling = "mean",
    belief: BeliefEntry = "residual",
    reads_features: bool = False,
    layout: HiddenLayout | None = None,
    carry: bool = False,
) -> Cascade:
    """A network that returns logits, cut before some of its modules: the extractor is what lies before the first point,
    refiner i the layers from point i to the next one and a belief head. Its modules are taken, not copied.

    The state is (log-belief, hidden activation). The last refiner ends with the network's own layers, its classifier
    among them, in place of a head. Parameters keep their names: behind `extractor.N.` for piece N of the extractor,
    behind `refiners.i.layers.` for refiner i; what is added to the network is in `refiners.i.head` and
    `refiners.i.reader`.

    Args:
        network: takes one input [B, ...] and returns logits [B, C]. Its forward, and those of the modules around
            points, are traced by torch.fx; all other modules are called as they are.
        points: names of modules as in `named_modules`, in the order of their calls; of a Sequential, numbers will do.
        num_classes: C.
        sample: an input [n, ...], of whose numbers nothing but the shape and the dtype is used.
        num_refiners: L, in place of points: these are chosen so that the L refiners cost alike, in multiply-adds.
        extractor_share: with num_refiners, the share of the network's cost before the first point, in (0, 1); by
            default 1/(L + 1).
        head: linear, mlp, conv or strided (`heads.py` tells what each costs), by default strided on images and linear
            on tokens and vectors; or a function of the activation's shape and C that returns a module.
        pool: of linear and mlp on tokens [B, T, D]: their mean, or the first one (class).
        belief: how the belief before enters: as a residual (logits = log p_{i-1} + correction), by a linear map of
            its probabilities (concat), or not at all (none).
        reads_features: whether every refiner but the first also adds the features to its hidden activation.
        layout: where hidden activations have their channels, if their proportions do not tell.
        carry: whether connections that a cut divides travel in the state, detached.

    Raises UsageError if the network cannot be cut like this, with the points that would do.
    """
    sample = two_rows(sample)
    if points is None:
        points = _chosen(network, sample, num_refiners, extractor_share)
    elif extractor_share is not None or num_refiners not in (None, len(points)):
        raise UsageError(
            f"{len(points)} points make {len(points)} refiners and an extractor that ends at the first one: leave out "
            "num_refiners and extractor_share, or the points"
        )
    names = [str(point) for point in points]
    segments = _segments(network, names, carry=carry)
    seams = seams_of(network, segments, sample, num_classes)[-len(names) - 1 : -1]
    for name, seam in zip(names, seams, strict=True):
        check_seam(name, seam)
    extractor, layers = segments[: -len(names)], segments[-len(names) :]

    def hidden(i: int) -> Hidden:
        image = (sample.shape[2], sample.shape[3]) if sample.dim() == 4 else None
        return find_layout(tuple(seams[i][0].shape[1:]), image, layout, lambda: seen(i))

    def seen(i: int) -> bool | None:
        with torch.no_grad(), as_if_alone(network, segments, sample, training=False):
            return is_read_last(partial(called, layers[i], seams[i]), layers[i])

    extractor[-1].lifts_tokens = lifted = seams[0][0].dim() == 3
    batch_norm, last = has_batch_norm(network), len(names) - 1

    def body(i: int) -> nn.Module:
        if i == last:
            return nn.Identity()  # the layers end with logits
        if callable(head):
            return own_body(head, tuple(seams[i + 1][0].shape[1:]), num_classes)
        return make_body(head, hidden(i + 1), num_classes, pool, batch_norm=batch_norm)

    refiners: list[nn.Module] = []
    for i, run in enumerate(layers):
        entry = BeliefHead(body(i), num_classes, belief).to(seams[i][0])
        reader = make_reader(hidden(0), hidden(i)).to(seams[i][0]) if reads_features and i > 0 else None
        if i < last:
            check_head(entry, seams[i + 1][0], num_classes)
        refiners.append(LayersRefiner(run, entry, reader, lifted=lifted, is_last=i == last))
    return Cascade(nn.Sequential(*extractor), refiners, num_classes)


def all_before(network: nn.Module, point: str, sample: Tensor, num_classes: int) -> nn.Sequential:
    """What lies before one module of a network, as an extractor. Raises UsageError as `cut_backbone` does."""
    segments = _segments(network, [point], carry=False)
    check_seam(point, seams_of(network, segments, two_rows(sample), num_classes)[-2])
    return nn.Sequential(*segments[:-1])


def _chosen(network: nn.Module, sample: Tensor, num_refiners: int | None, extractor_share: float | None) -> list[str]:
    """Points between which the refiners cost alike."""
    if num_refiners is None or num_refiners < 1:
        raise UsageError(f"give points, or num_refiners of at least 1, got num_refiners={num_refiners}")
    if extractor_share is not None and not 0 < extractor_share < 1:
        raise UsageError(f"extractor_share must lie in (0, 1), got {extractor_share}")
    points = Points(network)
    names = points.layers
    costs = _costs(network, points, names, sample)
    # Where several start without arithmetic in between, a norm before a layer for one, the first.
    names = [name for name, cost in zip(names, costs, strict=False) if cost > 0]
    costs = [cost for cost in costs[:-1] if cost > 0] + costs[-1:]
    if len(names) < num_refiners:
        raise UsageError(
            f"the network has {len(names)} layers or blocks before which it can be cut ({', '.join(names)}), fewer "
            f"than num_refiners={num_refiners}: set at most {len(names)}, or name points within blocks"
        )
    return [names[k] for k in balanced(costs, num_refiners, extractor_share)]


def _costs(network: nn.Module, points: Points, names: Sequence[str], sample: Tensor) -> list[int]:
    """Multiply-adds before the first of these points, between two, and behind the last one."""
    costs = []
    values: TensorTuple = (sample[:1],)
    segments = _cut(network, points, names)
    with as_if_alone(network, segments, sample, training=False):
        for segment in segments:
            values, cost = counted(partial(called, segment, leaves(values)))
            costs.append(cost)
    return costs


def _segments(network: nn.Module, names: Sequence[str], *, carry: bool) -> list[Segment]:
    """The pieces of the extractor, and then the layers of each refiner."""
    points = Points(network, names)
    if not names:
        raise UsageError(f"a cut needs at least one point; {points.offer()}")
    for name in names:
        points.check(name, carry=carry)
    starts = [points.traces[False].start(name) for name in names]
    if any(after <= before for before, after in pairwise(starts)):
        order = sorted(set(names), key=points.traces[False].start)
        raise UsageError(
            f"points are {', '.join(names)}, but must lie one behind the other: the network calls them in the order "
            f"{', '.join(order)}"
        )
    # The extractor is taken apart as far as it goes, so that a pipeline may cut it anywhere.
    pieces = [name for name in points.layers if points.traces[False].start(name) < starts[0]]
    return _cut(network, points, [*pieces, *names])


def _cut(network: nn.Module, points: Points, names: Sequence[str]) -> list[Segment]:
    """One segment before each of these points, and one behind the last."""
    ends = {
        training: [0, *(trace.start(name) for name in names), len(trace.nodes)]
        for training, trace in points.traces.items()
    }
    return [
        Segment(network, points.traces, {training: (end[k], end[k + 1]) for training, end in ends.items()})
        for k in range(len(names) + 1)
    ]
