"""Test samples that show how a cascade comes to its belief."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sidpar.cascade.cascade import Cascade
from sidpar.data.loader import Loader
from sidpar.errors import UsageError

_BATCH = 256


class Samples(NamedTuple):
    """Some test samples, and what a cascade believes of them."""

    indices: list[int]
    """Positions in the test set."""
    x: Tensor
    """Inputs of the network, [n, channels, H, W]."""
    labels: Tensor
    """[n]"""
    beliefs: Tensor
    """p_0..p_L, [L + 1, n, C]."""

    def pick(self, places: Sequence[int]) -> "Samples":
        """Some of them."""
        rows = list(places)
        return Samples([self.indices[k] for k in rows], self.x[rows], self.labels[rows], self.beliefs[:, rows])


def find_samples(cascade: Cascade, loader: Loader, wanted: Sequence[int] | None, most: int) -> Samples:
    """The wanted test samples in their order, or the first `most`. Raises UsageError for an index out of range."""
    end = most if wanted is None else max(wanted) + 1
    batches, count = [], 0
    for x, y in loader.test_batches():
        batches.append((x[: end - count], y[: end - count]))
        count += len(batches[-1][1])
        if count == end:
            break
    indices = list(range(count)) if wanted is None else list(wanted)
    outside = [index for index in indices if not 0 <= index < count]
    if outside:
        raise UsageError(
            f"--samples {outside[0]} is not in the test set, which has {count} images: give 0..{count - 1}"
        )
    x, labels = (torch.cat(parts)[indices] for parts in zip(*batches, strict=True))
    with torch.no_grad():
        beliefs = torch.cat([cascade.beliefs(part) for part in torch.split(x, _BATCH)], 1)
    return Samples(indices, x, labels, beliefs)


def telling(samples: Samples, each: int) -> list[int]:
    """Places of the most telling samples, at most `each` of a kind: right all the way and early; right after the belief
    had favoured another class (or had come slowly, where there are too few of these); wrong and sure of it."""
    final, confidence = samples.beliefs[-1].argmax(-1), samples.beliefs[-1].amax(-1)
    right = final == samples.labels
    early = samples.beliefs[1:].gather(-1, samples.labels[None, :, None].expand(len(samples.beliefs) - 1, -1, 1))
    early = early.squeeze(-1).mean(0)  # belief in the label, mean over depth
    detours = (samples.beliefs[1:].argmax(-1) != final).sum(0)
    sure = _best(right, early - detours, each)
    slow = _best(right & ~_among(sure, right), detours - early, each)
    return [*sure, *slow, *_best(~right, confidence, each)]


def _best(among: Tensor, score: Tensor, count: int) -> list[int]:
    order = score.argsort(descending=True, stable=True)
    return [int(k) for k in order if among[k]][:count]


def _among(places: Sequence[int], like: Tensor) -> Tensor:
    mask = torch.zeros_like(like)
    mask[list(places)] = True
    return mask


def story(beliefs: Tensor, label: int) -> str:
    """What became of one sample's belief, p_0..p_L [L + 1, C], in a few words."""
    favourites = beliefs[1:].argmax(-1)
    if favourites[-1] != label:
        return "wrong"
    changed = (favourites != label).nonzero()
    return "right" if not len(changed) else f"right from refiner {int(changed[-1]) + 2} on"
