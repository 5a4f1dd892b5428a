"""The configured network: one that ships with sidpar, or the user's own."""

from sidpar import models
from sidpar.cascade.cascade import Cascade
from sidpar.config.schema import Config
from sidpar.models.user_network import build_own


def build_network(config: Config, image_shape: tuple[int, int, int], num_classes: int) -> Cascade:
    """The network with its initial weights, for images [channels, H, W]. Raises UsageError as `build_own` does."""
    model, seed = config.model, config.run.seed
    if model.builder is not None:
        return build_own(model, image_shape, num_classes, seed)
    if model.name in ("wide_mlp", "plain_mlp"):
        assert model.width is not None
        assert model.depth is not None
        build = models.wide_mlp if model.name == "wide_mlp" else models.plain_mlp
        return build(image_shape, num_classes, model.num_refiners, width=model.width, depth=model.depth, seed=seed)
    build_cnn = models.simple_cnn if model.name == "simple_cnn" else models.plain_cnn
    return build_cnn(image_shape, num_classes, model.num_refiners, seed=seed)
