"""The settings of a run by group, each checked on its own. No torch."""

from dataclasses import dataclass
from typing import Literal

from sidpar.config.choices import (
    AnyExtractor,
    AnySchedule,
    Backend,
    DatasetName,
    DeviceKind,
    ModelName,
    OptimizerName,
    RateSchedule,
    RefinerExecution,
)
from sidpar.config.validation import at_least, fill_in, positive, without_effect
from sidpar.errors import UsageError

DEFAULT_MODEL: ModelName = "simple_cnn"
Option = bool | int | float | str | list[bool | int | float | str] | None
"""A plain value, which needs nothing but YAML to be read back."""
BUILDER_KEYWORDS = ("image_shape", "num_classes", "num_refiners", "seed")
"""What every builder is given; `model.options` adds to them."""


@dataclass(frozen=True)
class RunConfig:
    """Where the run is recorded."""

    name: str = "sid"
    """Part of the default run folder's name."""
    dir: str | None = None
    """Run folder; by default runs/<name>-<date>-<time>."""
    seed: int = 0
    """Of the initial weights, the order of the data, the augmentation and the random masks."""
    log_every: int = 10
    """Steps between two training rows in metrics.jsonl."""
    eval_every: int = 1
    """Epochs between two evaluations on the test set; the last epoch is always evaluated."""
    tensorboard: bool = True
    """Write TensorBoard's events beside metrics.jsonl."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or len(self.name) > 200:
            raise UsageError(
                f"run.name is part of a folder's name, so it must have 1 to 200 characters and no slash, got "
                f"{self.name!r}: choose another, or say by run.dir where the run is to be"
            )
        at_least("run.seed", self.seed, 0)
        at_least("run.log_every", self.log_every, 1)
        at_least("run.eval_every", self.eval_every, 1)


@dataclass(frozen=True)
class CheckpointConfig:
    """The states from which the same command goes on, once its run has been interrupted."""

    every: int | None = None
    """Steps between two checkpoints; by default one epoch. 0 for none. A stream is drained for each."""
    keep: int = 2
    """How many are kept: the newest ones."""
    asynchronous: bool = True
    """Write while training goes on, from a copy in host memory."""

    def __post_init__(self) -> None:
        if self.every is not None:
            at_least("checkpoint.every", self.every, 0)
        at_least("checkpoint.keep", self.keep, 1)
        if self.every == 0:
            without_effect("checkpoint", self, ["keep", "asynchronous"], "checkpoint.every=0 writes none")


@dataclass(frozen=True)
class DataConfig:
    """The dataset. `digits` is embedded; the others are read from folders under `root`, each in its usual layout."""

    name: DatasetName = "digits"
    """digits: embedded; fashion_mnist, cifar10, cifar100: torchvision's layouts; tiny_imagenet: the official layout,
    all of its classes or some; image_folder: train/<class>/... and val/<class>/... with images of any size."""
    root: str | None = None
    """Folder with the dataset; by default data."""
    download: bool = False
    """Let torchvision download the dataset into `root`."""
    batch_size: int = 128
    """Global batch B, over all ranks."""
    eval_batch_size: int = 512
    """Global batch of evaluations."""
    augment: bool = True
    """The paper's random crops and flips (no flips for digits)."""
    image_size: int | None = None
    """image_folder: height and width that the square in the middle of each image is resized to; by default 64."""
    workers: int | None = None
    """image_folder: processes of each rank that decode training images ahead, and as many for test images; by
    default 2; 0 for none."""
    label_noise: float = 0.0
    """Share of the training labels that are moved to another class, drawn by run.seed; label_noise.json in the run
    folder tells which."""

    def __post_init__(self) -> None:
        at_least("data.batch_size", self.batch_size, 1)
        at_least("data.eval_batch_size", self.eval_batch_size, 1)
        if not 0 <= self.label_noise < 1:
            raise UsageError(f"data.label_noise must lie in [0, 1), got {self.label_noise}")
        if self.name == "digits":
            without_effect("data", self, ["root", "download"], "data.name=digits is embedded")
        else:
            fill_in(self, root="data")
        if self.name in ("tiny_imagenet", "image_folder"):
            without_effect("data", self, ["download"], f"torchvision does not download data.name={self.name}")
        if self.name == "image_folder":
            fill_in(self, image_size=64, workers=2)
            at_least("data.image_size", self.image_size, 1)
            at_least("data.workers", self.workers, 0)
        else:
            reason = f"data.name={self.name} has images of one size and keeps them in memory"
            without_effect("data", self, ["image_size", "workers"], reason)


@dataclass(frozen=True)
class ModelConfig:
    """The cascade."""

    name: ModelName | None = None
    """simple_cnn (the default): the paper's; wide_mlp: refiners that are heavy; plain_cnn, plain_mlp: networks of the
    same cost for backpropagation, residual blocks without beliefs in between."""
    builder: str | None = None
    """Instead of a name, a function of your own, package.module:function. It is called with image_shape, num_classes,
    num_refiners, seed and model.options, all by keyword, and returns a sidpar.Cascade."""
    options: dict[str, Option] | None = None
    """builder: further keywords for it, numbers, texts, true or false, or lists of these; by default none."""
    num_refiners: int = 8
    """L; in plain networks, the number of blocks."""
    width: int | None = None
    """wide_mlp and plain_mlp: features and hidden units of each refiner; by default 1024."""
    depth: int | None = None
    """wide_mlp and plain_mlp: hidden layers of each refiner; by default 2."""

    def __post_init__(self) -> None:
        at_least("model.num_refiners", self.num_refiners, 1)
        if self.builder is not None:
            reason = f"model.builder={self.builder} makes the network"
            without_effect("model", self, ["name", "width", "depth"], reason)
            fill_in(self, options={})
            self._check_builder()
            return
        without_effect("model", self, ["options"], "only model.builder reads it")
        if self.name in ("wide_mlp", "plain_mlp"):
            fill_in(self, width=1024, depth=2)
            at_least("model.width", self.width, 1)
            at_least("model.depth", self.depth, 1)
        else:
            without_effect(
                "model", self, ["width", "depth"], f"model.name={self.name or DEFAULT_MODEL} has fixed sizes"
            )

    def _check_builder(self) -> None:
        module, colon, function = str(self.builder).partition(":")
        if not (colon and function.isidentifier() and all(name.isidentifier() for name in module.split("."))):
            raise UsageError(
                f"model.builder must be package.module:function, such as mynet:build, got {self.builder!r}"
            )
        for key, value in (self.options or {}).items():
            if not isinstance(key, str) or not key.isidentifier():
                raise UsageError(f"model.options are keywords of the builder, and {key!r} is none: rename it")
            if key in BUILDER_KEYWORDS:
                raise UsageError(f"model.options.{key}={value}: the builder is given {key} anyway; remove it")
            if isinstance(value, str) and value.startswith("{"):  # jsonargparse takes a mapping for a text
                raise UsageError(
                    f"model.options.{key} must be a number, a text, true or false, or a list of these, got {value}"
                )


@dataclass(frozen=True)
class ParallelConfig:
    """Who does what, and when."""

    extractor: AnyExtractor | None = None
    """Where features are computed. sid: replicated, root, sharded (the default). bp: root, or cut over the ranks layer
    by layer (the default)."""
    schedule: AnySchedule | None = None
    """Order of the work. sid: fused (the default), two_phase, streaming. bp: naive, gpipe, 1f1b (the default),
    interleaved, zero_bubble, zbv, dualpipe_v."""
    microbatches: int | None = None
    """M: microbatches per batch, of each replica's share; by default 1, and 4 per rank for bp on several ranks."""
    replicas: int = 1
    """R: copies of the cascade, each on K ranks and with 1/R of every batch; R x K ranks must be started."""
    staleness: int | None = None
    """schedule=streaming: how many steps late the extractor's updates are, by default 1; 0 is fused."""
    weight_prediction: bool | None = None
    """schedule=streaming with staleness: make features with the weights that the extractor is expected to have when
    their gradient is applied; by default false. Costs its weights once more."""
    diagnose_every: int | None = None
    """schedule=streaming with staleness: steps between two rows that compare its gradients with the synchronous ones on
    the same batch (Proposition 5); each costs a drain and two steps. 0, the default, for none."""
    refiner_execution: RefinerExecution | None = None
    """sid: loop, one refiner after the other (the default); stacked, all of a rank's as one batched computation."""
    placement: Literal["count", "cost"] | list[int] | None = None
    """Refiners per rank: count, as even as possible (the default of sid); cost, with the least maximum load (of bp); or
    as listed. For bp, layers of a cut extractor count too, and some schedules have two sections per rank."""
    costs: list[float] | None = None
    """placement=cost: cost of each refiner (before them, of each layer of a cut extractor) in any unit; by default
    measured on rank 0."""
    extractor_cost: float | None = None
    """placement=cost with given costs, extractor=root: cost of the extractor in the same unit; by default 0."""
    auto: bool = False
    """sid: choose what is left open of extractor, schedule (fused, or streaming with a staleness of 1), microbatches
    and placement by a plan, after a short calibration on the ranks of the job. The run folder tells what was chosen."""
    device: DeviceKind = "auto"
    """auto: CUDA if there is any."""
    backend: Backend = "auto"
    """auto: nccl where every rank has a GPU of its own, else gloo."""
    init_timeout: float = 300.0
    """Seconds for all ranks to appear and agree."""
    step_timeout: float = 100.0
    """Seconds that one message may take; the first step, which may compile, counts too."""

    def __post_init__(self) -> None:
        if self.microbatches is not None:
            at_least("parallel.microbatches", self.microbatches, 1)
        at_least("parallel.replicas", self.replicas, 1)
        if self.schedule == "streaming":
            fill_in(self, staleness=1)
            at_least("parallel.staleness", self.staleness, 0)
        else:
            without_effect("parallel", self, ["staleness"], "only parallel.schedule=streaming reads it")
        if self.staleness:
            fill_in(self, diagnose_every=0, weight_prediction=False)
            at_least("parallel.diagnose_every", self.diagnose_every, 0)
        else:
            names = ["diagnose_every", "weight_prediction"]
            without_effect("parallel", self, names, "without staleness nothing differs")
        positive("parallel.init_timeout", self.init_timeout)
        positive("parallel.step_timeout", self.step_timeout)


@dataclass(frozen=True)
class BPConfig:
    """Backpropagation through the whole cascade (method=bp in one process, method=ddp)."""

    checkpointing: bool = False
    """Keep only what enters each refiner, and compute the rest again in the backward."""
    deep_supervision: bool = False
    """Train by the sum of the losses of all refiners."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer of every part, and the learning rate over time."""

    name: OptimizerName = "adam"
    """The optimizer."""
    lr: float = 1e-3
    """Peak learning rate."""
    extractor_lr: float | None = None
    """The extractor's peak learning rate; by default optim.lr."""
    epochs: int = 100
    """Passes over the training set; 0 only writes the initial weights."""
    weight_decay: float = 0.0
    """Decoupled for adamw, L2 for the others."""
    momentum: float | None = None
    """sgd: by default 0.9."""
    nesterov: bool | None = None
    """sgd: by default true."""
    schedule: RateSchedule = "cosine"
    """After the warm-up: cosine to 0, or constant."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly."""
    clip: float | None = None
    """Largest gradient norm: of each part on its own where learning is local, else of all."""

    def __post_init__(self) -> None:
        positive("optim.lr", self.lr)
        if self.extractor_lr is not None:
            positive("optim.extractor_lr", self.extractor_lr)
        at_least("optim.epochs", self.epochs, 0)
        at_least("optim.weight_decay", self.weight_decay, 0)
        at_least("optim.warmup_epochs", self.warmup_epochs, 0)
        if self.clip is not None:
            positive("optim.clip", self.clip)
        if self.warmup_epochs > self.epochs:
            raise UsageError(
                f"optim.warmup_epochs={self.warmup_epochs:g} is longer than optim.epochs={self.epochs}: shorten it"
            )
        if self.name != "sgd":
            without_effect("optim", self, ["momentum", "nesterov"], f"optim.name={self.name} has no momentum setting")
            return
        fill_in(self, momentum=0.9, nesterov=self.momentum != 0)
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise UsageError(f"optim.momentum must lie in [0, 1), got {self.momentum}")
        if self.momentum == 0 and self.nesterov:
            raise UsageError(
                "optim.nesterov=true needs optim.momentum > 0, got 0: raise it, or set optim.nesterov=false"
            )
