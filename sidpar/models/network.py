"""The configured network: one that comes with sidpar, or the user's own."""

from sidpar.cascade.cascade import Cascade
from sidpar.config.schema import Config
from sidpar.models import named_model
from sidpar.models.user_network import build_own


def build_network(config: Config, image_shape: tuple[int, int, int], num_classes: int) -> Cascade:
    """The network with its initial weights, for images [channels, H, W]. Raises UsageError as `build_own` does."""
    model, seed = config.model, config.run.seed
    if model.builder is not None:
        return build_own(model, image_shape, num_classes, seed)
    _, named = named_model(model)
    settings = {name: getattr(model, name) for name in named.settings if getattr(model, name) is not None}
    return named.build(image_shape, num_classes, model.refiners, seed=seed, **settings, **(model.options or {}))
