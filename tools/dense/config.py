"""From a composed recipe to the configuration that mmengine's Runner runs."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ..engine.modeling import mixer_options
from ..errors import UserError
from .backbone import Backbone
from .settings import Data, Model, Optimizer, Schedule, Settings


def dense_config(settings: Settings, run_directory: str | Path) -> Config:
    """Return the whole configuration of a run: model, data, loops, optimiser and schedule.

    The base configs come with the toolboxes; the recipe's values are laid over them. Of `batch_size`, every process of
    the run gets its share, split further and accumulated where it is more than `runtime.max_batch_per_process`.

    Raises:
        UserError: a base there is not, or values that do not fit together.
    """
    toolbox = settings.architecture.base.split("::")[0]
    processes = int(os.environ.get("WORLD_SIZE", 1))
    share = share_of(settings.batch_size, processes, settings.runtime.max_batch_per_process)
    steps = settings.batch_size // (processes * share)  # of an update

    config = load_base(f"{toolbox}::_base_/default_runtime.py")
    config.work_dir = str(run_directory)
    config.launcher = "pytorch" if "WORLD_SIZE" in os.environ else "none"
    config.randomness = {"seed": settings.seed, "deterministic": settings.runtime.deterministic}
    config.env_cfg.dist_cfg = {"backend": "gloo" if device_of(settings) == "cpu" else "nccl"}
    config.compile = settings.runtime.compile
    config.model = model_config(settings, sync_norms=processes > 1 and device_of(settings) != "cpu")
    for name, value in data_config(settings.data, share, endless=settings.schedule.epochs is None).items():
        config[name] = value
    for name, value in loop_config(settings.schedule, settings.run.evaluate_every, steps).items():
        config[name] = value
    config.log_processor.by_epoch = settings.schedule.epochs is not None
    config.param_scheduler = schedule_config(settings.schedule, steps)
    config.optim_wrapper = optimizer_config(settings.optimizer, settings.model)
    config.optim_wrapper.update(precision_config(settings.runtime.precision, device_of(settings)))
    config.optim_wrapper["accumulative_counts"] = steps
    return config


def load_base(name: str) -> Config:
    """Return the config `<toolbox>::<path>` that is installed with mmdet or mmseg."""
    toolbox, _, path = name.partition("::")
    file = Path(import_module(toolbox).__file__).parent / ".mim" / "configs" / path
    if not file.is_file():
        raise UserError(f"{name}: {toolbox} has no such config; they are in {file.parents[len(Path(path).parts) - 1]}")
    return Config.fromfile(file)


def device_of(settings: Settings) -> str:
    """Return "cpu" or "cuda"."""
    device = settings.runtime.device
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def share_of(batch_size: int, processes: int, most: int | None) -> int:
    """Return how many images a process takes at once: the largest number that fits and divides its part of the batch.

    Raises:
        UserError: the batch cannot be divided among the processes.
    """
    if batch_size % processes:
        raise UserError(f"batch_size={batch_size} is not valid: it must be a multiple of the {processes} processes")
    part = batch_size // processes
    return next(share for share in range(min(part, most or part), 0, -1) if part % share == 0)


def model_config(settings: Settings, sync_norms: bool = True) -> dict[str, Any]:
    """Return the model's config: the base, the recipe's changes, our backbone, and all that follows from it.

    Heads and neck take the widths of the backbone's maps and the data's number of classes. Without `sync_norms` norms
    are not averaged over processes, which one process on a CPU could not even run.
    """
    base = load_base(settings.architecture.base)
    # A whole recipe of a toolbox names its preprocessor beside the model.
    model = Config({"model": base.model})
    model.merge_from_dict({"model": _tuples(settings.architecture.changes)})
    model = model.model
    model.pop("pretrained", None)
    model.pop("init_cfg", None)
    model.backbone = backbone_config(settings.model)
    model.backbone.sync_norms = settings.model.sync_norms and sync_norms
    _fit_widths(model, settings.model)
    _fit_classes(model, settings.data.num_classes, settings.data.num_stuff_classes)
    if settings.data.size is not None:
        padding = model.data_preprocessor.get("batch_augments") or [model.data_preprocessor]
        padding[0].size = tuple(settings.data.size)
    _replace(model, "type", "saccade.SingleRoIExtractor", only="SingleRoIExtractor")
    if not sync_norms:
        _replace(model, "type", "BN", only="SyncBN")
    return model


def backbone_config(model: Model) -> dict[str, Any]:
    """Return the config of our backbone."""
    return {
        "type": "saccade.Backbone",
        "name": model.name,
        "pretrained": model.weights or model.pretrained,
        "out_indices": model.out_indices,
        "out_norms": model.out_norms,
        "frozen_stages": model.frozen_stages,
        "drop_path_rate": model.drop_path_rate,
        "with_cp": model.grad_checkpointing,
        "norm_eval": model.norm_eval,
        "sync_norms": model.sync_norms,
        **mixer_options(model),
        **model.kwargs,
    }


def build_empty(model: Model) -> Backbone:
    """Build the backbone without memory for its weights, to ask it for its names and widths."""
    with torch.device("meta"):
        options = backbone_config(model)
        del options["type"]
        return Backbone(**options)


def _fit_widths(model: Config, backbone: Model) -> None:
    empty = build_empty(backbone)
    widths = list(empty.channels)
    neck = model.get("neck")
    if neck:
        (neck[0] if isinstance(neck, list) else neck)["in_channels"] = widths
        return
    for name in ("decode_head", "panoptic_head", "auxiliary_head"):
        heads = model.get(name) or []
        for head in heads if isinstance(heads, list) else [heads]:
            index = head.get("in_index")
            head["in_channels"] = widths[index] if isinstance(index, int) else widths
            if "strides" in head:
                head["strides"] = list(empty.strides)


def _fit_classes(model: Config, classes: int | None, stuff: int | None) -> None:
    """Set the numbers of classes; a head that tells things and stuff apart has both."""
    if classes is None:
        return
    _replace(model, "num_classes", classes)
    _replace(model, "num_things_classes", classes)
    _replace(model, "num_stuff_classes", stuff or 0)
    for head in (model.get("panoptic_head"), model.get("decode_head")):
        if isinstance(head, dict) and "class_weight" in head.get("loss_cls", {}):
            *_, nothing = head.loss_cls.class_weight
            head.loss_cls.class_weight = [1.0] * (classes + (stuff or 0)) + [nothing]


def _replace(node: Any, key: str, value: Any, only: Any = None) -> None:
    """Set every `key` in a nested config to `value`, or only those that are `only`."""
    if isinstance(node, dict):
        for name in node:
            if name == key and only in (None, node[name]):
                node[name] = value
            else:
                _replace(node[name], key, value, only)
    elif isinstance(node, (list, tuple)):
        for item in node:
            _replace(item, key, value, only)


def _tuples(node: Any) -> Any:
    """Make pairs of numbers tuples, which the toolboxes insist on for sizes."""
    if isinstance(node, dict):
        return {key: _tuples(value) for key, value in node.items()}
    if isinstance(node, list):
        pair = len(node) == 2 and all(isinstance(item, (int, float)) for item in node)
        return tuple(node) if pair else [_tuples(item) for item in node]
    return node


def data_config(data: Data, share: int, endless: bool) -> dict[str, Any]:
    """Return loaders and evaluators; `endless` loaders serve a schedule that counts iterations."""
    base = load_base(data.base)
    out = {name: base[name] for name in ("val_evaluator", "train_dataloader", "val_dataloader")}
    train, val = out["train_dataloader"], out["val_dataloader"]
    train.batch_size = share
    train.sampler = {"type": "InfiniteSampler" if endless else "DefaultSampler", "shuffle": True}
    evaluated = _innermost(val.dataset)
    there = evaluated.data_root, evaluated.get("ann_file")
    for loader, changes in ((train, data.train), (val, data.eval)):
        loader.num_workers = data.workers
        loader.persistent_workers = data.workers > 0
        dataset = _innermost(loader.dataset)
        dataset.data_root = data.root
        dataset.update(_tuples(changes))
        if data.classes is not None:
            dataset.metainfo = {"classes": tuple(data.classes)}
    if data.train_transforms is not None:
        dataset = _innermost(train.dataset)
        loading = [step for step in dataset.pipeline if step.type.startswith("Load")]
        dataset.pipeline = [*loading, *_tuples(data.train_transforms), dataset.pipeline[-1]]
    if data.eval_pipeline is not None:
        evaluated.pipeline = _tuples(data.eval_pipeline)
    evaluators = out["val_evaluator"]
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        for key in {"ann_file", "seg_prefix"} & evaluator.keys():
            evaluator[key] = _moved(evaluator[key], key, there, evaluated)
        if data.metrics is not None and "metric" in evaluator:
            evaluator.metric = data.metrics
    return out | {"test_dataloader": val, "test_evaluator": evaluators}


def _innermost(dataset: Config) -> Config:
    """Return the data set that others (repeated, joined) are made of."""
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def _moved(path: str, key: str, there: tuple[str, str | None], dataset: Config) -> str:
    """Return an evaluator's path: that of `dataset`'s own file or folder, or the same place below its root."""
    root, annotations = there
    inside = path.removeprefix(root)
    if key == "ann_file" and inside == annotations:
        inside = dataset.ann_file
    if key == "seg_prefix":
        inside = dataset.data_prefix.get("seg", inside)
    return str(Path(dataset.data_root) / inside)


def loop_config(schedule: Schedule, evaluate_every: int, steps: int) -> dict[str, Any]:
    """Return the loops; mmengine counts every step of an accumulated update as an iteration."""
    if schedule.epochs:
        loop = {"type": "EpochBasedTrainLoop", "max_epochs": schedule.epochs, "val_interval": evaluate_every}
    else:
        loop = {
            "type": "IterBasedTrainLoop",
            "max_iters": schedule.iterations * steps,
            "val_interval": evaluate_every * steps,
        }
    return {"train_cfg": loop, "val_cfg": {"type": "ValLoop"}, "test_cfg": {"type": "TestLoop"}}


def schedule_config(schedule: Schedule, steps: int) -> list[dict[str, Any]]:
    """Return the learning rate's course: warm-up times the schedule, both from the first iteration on.

    As with mmcv 1, which the recipes were published for, a slope of n iterations arrives at its end with the n-th.
    """
    by_epoch = schedule.epochs is not None
    end = schedule.epochs or schedule.iterations * steps + 1
    course: list[dict[str, Any]] = []
    if schedule.warmup_iterations:
        course.append(
            {
                "type": "LinearLR",
                "start_factor": max(schedule.warmup_factor, 1e-12),
                "by_epoch": False,
                "begin": 0,
                "end": schedule.warmup_iterations * steps + 1,
            }
        )
    if schedule.name == "step":
        milestones = [milestone * (1 if by_epoch else steps) for milestone in schedule.milestones or []]
        main = {"type": "MultiStepLR", "milestones": milestones, "gamma": schedule.gamma}
    else:
        main = {"type": "PolyLR", "power": schedule.power, "eta_min": schedule.min_lr}
    return [*course, {**main, "by_epoch": by_epoch, "begin": 0, "end": end}]


def optimizer_config(optimizer: Optimizer, model: Model) -> dict[str, Any]:
    """Return the optimiser with its rules for single parameters."""
    options = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay, **optimizer.kwargs}
    if optimizer.betas is not None:
        options["betas"] = tuple(optimizer.betas)
    rules = {key: {"decay_mult": 0.0} for key in optimizer.no_decay}
    rules |= {key: {"lr_mult": scale} for key, scale in optimizer.lr_scale.items()}
    paramwise: dict[str, Any] = {"custom_keys": rules}
    if not optimizer.norm_decay:
        paramwise["norm_decay_mult"] = 0.0
        if scale := optimizer.lr_scale.get("backbone"):
            # mmengine leaves out this rule where another one applies, so the backbone's norms are named one by one.
            empty = build_empty(model)
            norms = (name for name, module in empty.named_modules() if isinstance(module, torch.nn.LayerNorm))
            rules |= {f"backbone.{name}.": {"lr_mult": scale, "decay_mult": 0.0} for name in norms}
    clip = None if optimizer.clip is None else {"max_norm": optimizer.clip, "norm_type": 2}
    return {"optimizer": {"type": optimizer.name, **options}, "paramwise_cfg": paramwise, "clip_grad": clip}


def precision_config(precision: str, device: str) -> dict[str, Any]:
    """Return the wrapper that steps the optimiser in this precision; on a CPU that is always float32."""
    if precision == "float32" or device == "cpu":
        return {"type": "OptimWrapper"}
    scale = "dynamic" if precision == "float16" else {"enabled": False}
    return {"type": "AmpOptimWrapper", "dtype": precision, "loss_scale": scale}
