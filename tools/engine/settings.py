"""The types of everything a classification recipe may say; the values live in `recipes/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError, check_choice, check_range

T = TypeVar("T")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass
class Data:
    kind: str  # digits | folder
    root: str | None  # folder: the directory that holds the splits
    train_split: str  # folder: sub-directory with one directory per class
    eval_split: str
    holdout: float  # digits: share of images held out
    workers: int  # loader processes per training process; 0 loads in the training process
    input_size: list[int] | None  # [3, height, width]; null takes the model's own, as for all below
    mean: list[float] | None
    std: list[float] | None
    interpolation: str | None
    crop_pct: float | None
    crop_mode: str | None


@dataclass
class Model:
    name: str  # any timm name, with or without a pretrained tag
    pretrained: bool  # start from the released weights
    weights: str | None  # start from this file, or from another model's released weights (name.tag), instead
    weights_classes: int | None  # classes the file was made for; null: what the model's pretrained_cfg says
    num_classes: int | None  # null: as many as the data has
    drop_rate: float | None
    drop_path_rate: float | None
    kwargs: dict[str, Any]  # passed on to timm.create_model
    mixer: Any = None  # a token mixer by name, or one for each stage, for models that carry any
    mixer_kwargs: Any = field(default_factory=dict)  # its hyper-parameters, of all stages or of each


@dataclass
class Augment:
    scale: list[float]  # random resized crop: share of the area
    ratio: list[float]  # and aspect ratio
    hflip: float
    vflip: float
    color_jitter: float | None  # unused by timm when auto_augment is set
    auto_augment: str | None  # e.g. rand-m9-mstd0.5-inc1
    interpolation: str  # random | bicubic | bilinear | ...
    erase_prob: float
    erase_mode: str  # const | rand | pixel
    erase_count: int
    mixup: float  # alpha, 0 switches it off
    cutmix: float
    mix_prob: float
    mix_switch_prob: float
    mix_mode: str  # batch | pair | elem
    label_smoothing: float


@dataclass
class Optimizer:
    name: str  # any of timm.optim.list_optimizers()
    lr: float  # for the whole batch
    weight_decay: float
    layer_decay: float | None
    momentum: float
    betas: list[float] | None
    eps: float | None
    kwargs: dict[str, Any]  # passed on to the optimizer
    clip: float | None
    clip_mode: str  # norm | value | agc
    ema_decay: float | None  # null: no moving average of the weights
    ema_warmup: bool


@dataclass
class Schedule:
    name: str
    epochs: int
    cooldown_epochs: int
    warmup_epochs: float
    warmup_lr: float
    min_lr: float
    kwargs: dict[str, Any]  # passed on to timm's create_scheduler_v2


@dataclass
class Runtime:
    device: str  # auto | cpu | cuda
    precision: str  # float32 | bfloat16 | float16
    compile: bool
    channels_last: bool
    max_batch_per_process: int | None  # more than this is accumulated
    threads: int | None  # CPU threads per process; null leaves PyTorch's choice
    deterministic: bool


@dataclass
class TensorBoard:
    flush_seconds: int


@dataclass
class WandB:
    project: str
    entity: str | None
    tags: list[str]


@dataclass
class Loggers:
    csv: dict[str, Any] | None = None
    tensorboard: TensorBoard | None = None
    wandb: WandB | None = None


@dataclass
class Run:
    root: str
    dir: str | None  # null: <root>/<recipe>/<time>
    checkpoint_every: int  # updates; 0 saves at the end of an epoch only
    evaluate_every: int  # epochs
    log_every: int  # updates


@dataclass
class Settings:
    """A classification recipe, composed and checked."""

    data: Data
    model: Model
    augment: Augment
    optimizer: Optimizer
    schedule: Schedule
    runtime: Runtime
    logger: Loggers
    run: Run
    batch_size: int  # images per update, over all processes
    seed: int
    resume: str | None  # auto | a run directory
    checkpoint: str | None  # evaluate: a run directory or a weights file


def read_settings(config: DictConfig) -> Settings:
    """Check a composed recipe against the types above.

    Errors:
        UserError: a key is unknown or missing, or a value has the wrong type; the message names key and value.
    """
    settings = compose_settings(Settings, config)
    _check_values(settings)
    return settings


def compose_settings(types: type[T], config: DictConfig) -> T:
    """Return a composed recipe as the dataclass `types`, with every value of its type.

    Errors:
        UserError: a key is unknown or missing, or a value has the wrong type; the message names key and value.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(types), config)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"the recipe leaves {', '.join(missing)} open: pass {missing[0]}=...")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = error.full_key or error.key
        raise UserError(f"{key}: {(error.msg or str(error)).splitlines()[0]}") from error


def _check_values(settings: Settings) -> None:
    data, augment, optimizer, schedule = settings.data, settings.augment, settings.optimizer, settings.schedule
    check_choice("data.kind", data.kind, ("digits", "folder"))
    check_choice("augment.interpolation", augment.interpolation, (*INTERPOLATIONS, "random"))
    if data.interpolation is not None:
        check_choice("data.interpolation", data.interpolation, INTERPOLATIONS)
    check_choice("augment.erase_mode", augment.erase_mode, ("const", "rand", "pixel"))
    check_choice("augment.mix_mode", augment.mix_mode, ("batch", "pair", "elem"))
    check_choice("optimizer.clip_mode", optimizer.clip_mode, ("norm", "value", "agc"))
    size = data.input_size
    if size is not None and (len(size) != 3 or size[0] != 3 or min(size) < 1):
        raise UserError(f"data.input_size={size} is not valid: write [3, height, width]")
    for name in ("scale", "ratio"):
        if len(getattr(augment, name)) != 2:
            raise UserError(f"augment.{name}={getattr(augment, name)} is not valid: write [low, high]")
    for name in ("hflip", "vflip", "erase_prob", "mix_prob", "mix_switch_prob"):
        check_range(f"augment.{name}", getattr(augment, name), 0, 1)
    check_range("augment.mixup", augment.mixup, 0)
    check_range("augment.cutmix", augment.cutmix, 0)
    check_range("augment.label_smoothing", augment.label_smoothing, 0, 1)
    check_range("data.holdout", data.holdout, 0.01, 0.99)
    check_range("data.workers", data.workers, 0)
    check_range("batch_size", settings.batch_size, 1)
    check_range("seed", settings.seed, 0)
    check_range("optimizer.lr", optimizer.lr, 0)
    check_range("optimizer.weight_decay", optimizer.weight_decay, 0)
    check_range("schedule.epochs", schedule.epochs, 1)
    check_range("schedule.cooldown_epochs", schedule.cooldown_epochs, 0)
    check_range("schedule.warmup_epochs", schedule.warmup_epochs, 0, schedule.epochs)
    for name, value in (("layer_decay", optimizer.layer_decay), ("ema_decay", optimizer.ema_decay)):
        if value is not None:
            check_range(f"optimizer.{name}", value, 0, 1)
    check_runtime(settings.runtime, settings.run)


def check_runtime(runtime: Runtime, run: Run) -> None:
    """Raise unless the values that every task has are valid."""
    check_choice("runtime.device", runtime.device, ("auto", "cpu", "cuda"))
    check_choice("runtime.precision", runtime.precision, ("float32", "bfloat16", "float16"))
    check_range("run.checkpoint_every", run.checkpoint_every, 0)
    check_range("run.evaluate_every", run.evaluate_every, 1)
    check_range("run.log_every", run.log_every, 1)
    for name in ("max_batch_per_process", "threads"):
        if getattr(runtime, name) is not None:
            check_range(f"runtime.{name}", getattr(runtime, name), 1)
