"""How modules are executed."""

from dataclasses import dataclass

from sidpar.config.groups.choices import Autocast


@dataclass(frozen=True)
class Compute:
    """How modules are executed. These settings change results by rounding only."""

    autocast: Autocast = "none"
    """bf16: compute matrix products in bfloat16; losses, beliefs and messages stay in fp32."""
    channels_last: bool = False
    """Store images and the extractor's weights in NHWC order, which is faster for convolutions."""
    compile: bool = False
    """Compile the extractor and each refiner with torch.compile."""
    tf32: bool = False
    """NVIDIA GPUs from Ampere on: compute matrix products and convolutions of fp32 numbers in TF32, with a mantissa of
    10 bits. Faster; results with different numbers of ranks then differ by about 1e-3."""
    cudnn_benchmark: bool = False
    """GPUs: let cuDNN time its algorithms for each new shape and use the fastest one. Which one that is may differ from
    run to run, and with it the rounding."""
