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
    tf32: bool = False
    """GPUs from Ampere on: products of fp32 numbers, convolutions included, with mantissas of 10 bits. Faster, and
    another number of ranks gives another rounding of about 1e-3."""
    cudnn_benchmark: bool = False
    """GPUs: cuDNN times its algorithms for each new shape in place of choosing by heuristics. Which one wins, and so
    the rounding, may differ from run to run."""
