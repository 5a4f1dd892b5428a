"""A section of a cascade as one module: what one stage of a pipeline executes (see `schedules/cut.py`).

Sections pass on one activation within the extractor. After it, they pass on the features, which every later refiner
reads, and the state. Gradients flow back through all of them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sidpar.cascade.cascade import TensorTuple, at_least_fp32, initial_state, is_differentiable
from sidpar.cascade.specs import Spec, named_sequence
from sidpar.errors import UsageError
from sidpar.schedules.cut import Cut
from sidpar.seeding import mask_seed
from sidpar.stages.check import check
from sidpar.stages.stage import Stage


class Section(nn.Module):
    """The pieces of section `index`, which lie in `stage`; parameters are the stage's own.

    Set `step` and `microbatch` before each forward: random masks and the record of log-beliefs depend on them. With a
    cut extractor, its masks also depend on where it is cut.
    """

    def __init__(
        self, stage: Stage, cut: Cut, index: int, num_features: int, *, splits_backward: bool, seed: int
    ) -> None:
        super().__init__()
        layers = cut.layers_of(index)
        self.index = index
        self.refiner_numbers = cut.refiners_of(index)
        self.is_first, self.is_last = index == 0, index == cut.num_sections - 1
        self.step = self.microbatch = 0
        self.log_beliefs: dict[tuple[int, int], Tensor] = {}
        """Log-belief i of microbatch m, without its graph, for every i that a refiner here receives or returns."""
        self.layers = _layers(stage, layers)
        self.refiners = nn.ModuleList(stage.refiners[str(i)] for i in self.refiner_numbers)
        self._within_extractor = layers.stop < cut.num_layers
        self._mask_name = f"extractor.{layers.start}" if layers.start else "extractor"
        self._num_features = num_features
        self._splits_backward = splits_backward
        self._stage = (stage,)  # in a tuple, or it would become a submodule, and all of its parameters ours
        self._seed = seed

    def forward(self, *tensors: Tensor) -> TensorTuple | Tensor:
        """From what the section before passes on (for the first section, the images) to what this section passes on
        (for the last, the log-belief [b, C])."""
        stage, graph = self._stage[0], torch.is_grad_enabled()
        if not self.is_first:
            tensors = _Seam.apply(*tensors)
        features, state = tensors[: self._num_features], tensors[self._num_features :]
        if self.layers is not None:
            self._seed_masks(self._mask_name)
            activations = stage.run_layers(self.layers, tensors[0], graph=graph)
            if self._within_extractor:
                half = stage.compute.autocast == "bf16"  # an activation travels as autocast computes it
                return self._outputs(tuple(tensor.to(torch.bfloat16) if half else tensor for tensor in activations))
            features, state = tuple(at_least_fp32(tensor) for tensor in activations), ()
        for i in self.refiner_numbers:
            if i == 0:
                state = initial_state(features, stage.num_classes)
            self.log_beliefs[i, self.microbatch] = state[0].detach()
            self._seed_masks(f"refiners.{i}")
            state = stage.refine(i, features, state, graph=graph)
            self.log_beliefs[i + 1, self.microbatch] = state[0].detach()
        if self.is_last:
            return state[0]
        return self._outputs((*features, *state))

    def _outputs(self, tensors: TensorTuple) -> TensorTuple:
        """Tensors that can be sent, and that torch can detach in place once the gradient of the input is computed. So
        they are no views, and, where the weights' backward comes later, none that it still needs."""
        return tuple(
            tensor.clone(memory_format=torch.contiguous_format)
            if self._splits_backward or tensor._is_view()
            else tensor.contiguous()
            for tensor in tensors
        )

    def _seed_masks(self, part: str) -> None:
        self._stage[0].seed(part, mask_seed(self._seed, part, self.step, self.microbatch))


def seams(stage: Stage, cut: Cut, x: Tensor) -> list[tuple[Spec, ...]]:
    """`seams(...)[s]`: what enters section s for inputs like x [B, ...], per sample; one more for what leaves the last.

    Raises UsageError for tensors that no gradient can come back for.
    """
    specs = check(stage, x)
    layers = stage.skeleton.layers(x) if cut.extractor == "cut" else [specs.features[0]]
    _refuse_integers(specs.features, "feature")
    for i, state in enumerate(specs.states):
        _refuse_integers(state, f"the state before refiner {i}, tensor")
    seams: list[tuple[Spec, ...]] = [(Spec(tuple(x.shape[1:]), x.dtype),)]
    for section in range(cut.num_sections - 1):
        ends = cut.layers_of(section).stop if cut.layers_of(section) else cut.num_layers
        refiners = cut.refiners_of(section)
        if ends < cut.num_layers:
            spec = layers[ends - 1]
            _refuse_integers((spec,), f"what layer {ends - 1} of the extractor returns, tensor")
            seams.append((Spec(spec.shape, torch.bfloat16) if stage.compute.autocast == "bf16" else spec,))
        elif refiners:
            seams.append((*specs.features, *specs.states[refiners.stop]))
        else:
            seams.append(specs.features)
    return [*seams, specs.states[-1][:1]]


class _Seam(torch.autograd.Function):
    """The identity. Every input gets a gradient, zero if nothing read it, and a contiguous one: what is to be sent."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> TensorTuple:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> TensorTuple:
        return tuple(gradient.contiguous() for gradient in gradients)


def _layers(stage: Stage, layers: range) -> nn.Module | None:
    """The extractor's layers of a section, out of those that the stage holds."""
    if not layers:
        return None
    assert stage.extractor is not None
    if stage.placement.extractor != "cut":
        return stage.extractor
    return named_sequence(stage.extractor, [stage.skeleton.layer_names[k] for k in layers])


def _refuse_integers(specs: tuple[Spec, ...], what: str) -> None:
    for k, spec in enumerate(specs):
        if not is_differentiable(spec.dtype):
            raise UsageError(
                f"{what} {k} is {spec.dtype}: a pipeline sends a gradient back for every tensor that it sends, and "
                "integers have none: pass on floating-point tensors, or use method=ddp"
            )
