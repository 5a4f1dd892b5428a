"""How modules are executed."""

from dataclasses import dataclass

from sidpar.config.groups.choices import Autocast


@dataclass(frozen=True)
class Compute:
    """How modules are executed. Results agree up to rounding."""

    autocast: Autocast = "none"
    """bf16: matrix products in bfloat16; losses, beliefs and messages stay in fp32."""
    channels_last: bool = False
    """The extractor's weights and images in NHWC order, faster for convolutions."""
    compile: bool = False
    """torch.compile each module on its own."""
