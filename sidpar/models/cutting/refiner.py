"""A run of a network's layers that hands on what it believes, and the activation that the next run goes on with."""

from torch import Tensor, nn

from sidpar.cascade.cascade import as_tuple
from sidpar.cascade.inputs import Tensors
from sidpar.errors import UsageError
from sidpar.models.cutting.heads import BeliefHead
from sidpar.models.cutting.layouts import Hidden, Mean, ToImage


class LayersRefiner(nn.Module):
    """(features, state) to (logits [B, C], hidden [B, ...] and what else crosses the cut behind it).

    Args:
        layers: map what crosses the cut before it to what crosses the one behind; of the last refiner, to logits.
        head: maps what the layers return first, and the log-belief, to logits.
        reader: maps the features to what is added to the hidden activation; the first refiner has none, since its
            hidden activation is the features.
        lifted: whether tokens [B, T, D] are [B, 1, T, D] among the features.
        is_last: whether logits are all that is handed on.
    """

    def __init__(
        self, layers: nn.Module, head: BeliefHead, reader: nn.Module | None, *, lifted: bool, is_last: bool
    ) -> None:
        super().__init__()
        self.layers, self.head, self.reader = layers, head, reader
        self._lifted, self._is_last = lifted, is_last

    def forward(self, features: Tensors, state: Tensors) -> Tensors:
        first, *others = as_tuple(features)  # not touched by a refiner that does not read them: then they are not sent
        log_belief, *hidden = as_tuple(state)
        if not hidden:  # of the first refiner
            hidden = [self._as_tokens(first), *others]
        elif self.reader is not None:
            hidden[0] = hidden[0] + self.reader(self._as_tokens(first))
        outputs = as_tuple(self.layers(*hidden))
        logits: Tensor = self.head(outputs[0], log_belief)
        return logits if self._is_last else (logits, *outputs)

    def _as_tokens(self, first: Tensor) -> Tensor:
        return first.squeeze(1) if self._lifted else first


def make_reader(features: Hidden, hidden: Hidden) -> nn.Module:
    """From features to a hidden activation of another shape: averaged over positions to its height and width, then
    mapped to its channels by a 1x1 convolution, which is zero at first. Costs C_features C_hidden multiply-adds for
    each position of the hidden activation.

    Raises UsageError where one is an image and the other is not.
    """
    layers: list[nn.Module]
    if not hidden.positions:
        layers = [Mean(features), nn.Linear(features.channels, hidden.channels)]
    elif features.positions == hidden.positions and features.channels_last and hidden.channels_last:
        layers = [nn.Linear(features.channels, hidden.channels)]
    elif len(features.positions) == len(hidden.positions) == 2:
        assert hidden.grid is not None
        layers = [
            ToImage(features),
            nn.AdaptiveAvgPool2d(hidden.grid),
            *([_ChannelsLast()] if hidden.channels_last else []),
            nn.Linear(features.channels, hidden.channels)
            if hidden.channels_last
            else nn.Conv2d(features.channels, hidden.channels, 1),
        ]
    else:
        raise UsageError(
            f"reads_features=true adds features {features} to a hidden activation {hidden}, but knows no way from one "
            "to the other: remove it, or choose points between which the shape stays an image, or tokens"
        )
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*layers)


class _ChannelsLast(nn.Module):
    """[B, C, H, W] to [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)
