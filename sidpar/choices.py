"""Every choice that a setting offers by name, once."""

from typing import Literal

Method = Literal["sid", "local"]
DatasetName = Literal["digits", "fashion_mnist", "cifar10", "cifar100"]
ModelName = Literal["simple_cnn", "wide_mlp"]
KL = Literal["forward", "reverse"]
ExtractorUpdate = Literal["all", "final", "frozen"]
ExtractorPlacement = Literal["replicated", "root", "sharded"]
ScheduleName = Literal["two_phase", "fused"]
Backend = Literal["auto", "nccl", "gloo"]
DeviceKind = Literal["auto", "cpu", "cuda"]
Autocast = Literal["none", "bf16"]
OptimizerName = Literal["adam", "adamw", "sgd"]
RateSchedule = Literal["cosine", "constant"]
