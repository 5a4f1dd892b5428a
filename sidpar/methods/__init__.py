"""Methods of training: which settings they read, how they place a network, and which engine they use.

May import: config, schedules, simulation, planner, cascade, rules, models, data, distributed, stages, engines,
calibration.
Start reading: base.py, the interface; ddp.py, the shortest one.
"""

from dataclasses import replace

from sidpar import models
from sidpar.config.groups.checks import known
from sidpar.config.groups.refusals import unread
from sidpar.config.schema import Config
from sidpar.data import datasets
from sidpar.methods.base import Method
from sidpar.methods.bp import BPMethod
from sidpar.methods.ddp import DDPMethod
from sidpar.methods.local import LocalMethod
from sidpar.methods.sid import SIDMethod

ON_CPU = unread(
    "with parallel.device=cpu",
    "parallel.device=cpu uses no GPU",
    "compute.tf32",
    "compute.cudnn_benchmark",
)
METHODS: dict[str, Method] = {method.name: method for method in (SIDMethod(), LocalMethod(), BPMethod(), DDPMethod())}


def method_of(config: Config) -> Method:
    """The configured method."""
    return known("method", config.method, METHODS)


def complete(config: Config) -> Config:
    """The configuration with all defaults filled in, as a new object. Raises UsageError for settings without effect."""
    if config.parallel.device == "cpu":
        ON_CPU.check(config.compute)
    config = replace(config, data=datasets.complete(config.data), model=models.complete(config.model, config.compute))
    return method_of(config).complete(config)
