"""The types of everything a detection or segmentation recipe may say; the values live in `recipes/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from ..engine.settings import Loggers, Run, Runtime, check_runtime, compose_settings
from ..errors import UserError, check_choice, check_range


@dataclass
class Model:
    """The backbone, as `Backbone` takes it."""

    name: str  # any timm name, with or without a pretrained tag
    pretrained: bool  # start from the released ImageNet weights
    weights: str | None  # start from this file, or from released weights (name.tag), instead
    drop_path_rate: float | None
    out_indices: list[int] | None  # null: the maps at strides 4 to 32
    out_norms: Any  # a LayerNorm on each map: true, false, or the indices that have one
    frozen_stages: int  # stem and this many stages do not learn; -1 for none
    grad_checkpointing: bool
    norm_eval: bool  # keep batch norms in evaluation mode
    sync_norms: bool  # batch norms over the images of all GPUs
    kwargs: dict[str, Any]  # passed on to timm.create_model
    mixer: Any = None  # a token mixer by name, or one for each stage, for models that carry any
    mixer_kwargs: Any = field(default_factory=dict)  # its hyper-parameters, of all stages or of each


@dataclass
class Architecture:
    """What stands on the backbone."""

    base: str  # a config inside an installed toolbox: mmdet::_base_/models/mask-rcnn_r50_fpn.py
    changes: dict[str, Any]  # laid over the base's model; `_delete_: true` replaces a mapping


@dataclass
class Data:
    base: str  # a data set's config inside an installed toolbox
    root: str
    train: dict[str, Any]  # laid over the base's training set: annotation file, folders
    eval: dict[str, Any]  # and over its evaluation set
    classes: list[str] | None  # null: those of the base
    num_classes: int | None  # null: what the architecture says
    num_stuff_classes: int | None  # those of them are things, panoptic segmentation has these besides
    train_transforms: list[Any] | None  # the toolbox's transforms between loading and packing; null: the base's
    eval_pipeline: list[Any] | None  # all of them; null: the base's
    size: list[int] | None  # pad training images to [height, width]
    metrics: list[str] | None  # what the base's evaluator measures; null: what the base says
    workers: int
    make: str | None = None  # shapes: draw these where root is absent or empty


@dataclass
class Optimizer:
    name: str  # a class of torch.optim
    lr: float  # for the whole batch
    weight_decay: float
    betas: list[float] | None
    kwargs: dict[str, Any]  # passed on to the optimizer
    no_decay: list[str]  # parameters with one of these in their name do not decay
    norm_decay: bool  # false: neither do those of norms, whatever their name
    lr_scale: dict[str, float]  # parameters with this in their name learn at that share of lr
    clip: float | None  # norm of the gradient


@dataclass
class Schedule:
    name: str  # step | poly
    epochs: int | None  # one of the two; milestones and run.evaluate_every count the same
    iterations: int | None
    milestones: list[int] | None  # step: where the rate drops
    gamma: float  # step: by this factor
    power: float  # poly
    min_lr: float  # poly
    warmup_iterations: int
    warmup_factor: float  # share of lr that the warm-up starts from


@dataclass
class Settings:
    """A recipe for dense prediction, composed and checked; it has either a detector or a segmentor."""

    data: Data
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    runtime: Runtime
    logger: Loggers
    run: Run
    batch_size: int  # images per update, over all processes
    seed: int
    resume: str | None
    checkpoint: str | None
    detector: Architecture | None = None
    segmentor: Architecture | None = None

    @property
    def architecture(self) -> Architecture:
        """The detector or the segmentor."""
        return self.detector or self.segmentor


def read_settings(config: DictConfig) -> Settings:
    """Check a composed recipe against the types above.

    Raises:
        UserError: a key is unknown or missing, or a value is not valid; the message names key and value.
    """
    settings = compose_settings(Settings, config)
    model, data, optimizer, schedule = settings.model, settings.data, settings.optimizer, settings.schedule
    if (settings.detector is None) == (settings.segmentor is None):
        raise UserError("a recipe for dense prediction has either a detector or a segmentor")
    for name, base in (("data.base", data.base), ("base", settings.architecture.base)):
        if base.split("::")[0] not in ("mmdet", "mmseg"):
            raise UserError(f"{name}={base} is not valid: write mmdet::PATH or mmseg::PATH, a config in the toolbox")
    if model.pretrained and model.weights:
        raise UserError(f"model.pretrained=true and model.weights={model.weights} exclude each other")
    if not isinstance(model.out_norms, (bool, list)):
        raise UserError(f"model.out_norms={model.out_norms} is not valid: write true, false or a list of indices")
    if data.size is not None and len(data.size) != 2:
        raise UserError(f"data.size={data.size} is not valid: write [height, width]")
    check_choice("schedule.name", schedule.name, ("step", "poly"))
    if (schedule.epochs is None) == (schedule.iterations is None):
        raise UserError(
            f"schedule.epochs={schedule.epochs} and schedule.iterations={schedule.iterations}: give one, null the other"
        )
    check_range("schedule.epochs", schedule.epochs or 1, 1)
    check_range("schedule.iterations", schedule.iterations or 1, 1)
    check_range("schedule.warmup_iterations", schedule.warmup_iterations, 0)
    check_range("schedule.warmup_factor", schedule.warmup_factor, 0, 1)
    check_range("optimizer.lr", optimizer.lr, 0)
    check_range("optimizer.weight_decay", optimizer.weight_decay, 0)
    check_range("data.workers", data.workers, 0)
    check_range("batch_size", settings.batch_size, 1)
    check_range("seed", settings.seed, 0)
    check_runtime(settings.runtime, settings.run)
    return settings
