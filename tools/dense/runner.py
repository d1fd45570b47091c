"""mmengine's Runner inside a run directory of ours: on the processes we have joined, writing only the files we name,
and going on from our checkpoints."""

from __future__ import annotations

import logging
import uuid
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import mmengine.runner
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from torch import nn

from ..engine.checkpoint import Checkpoint
from ..engine.distributed import Processes
from ..engine.modeling import load_weights
from ..engine.seeding import seed_everything
from . import sampling  # noqa: F401  registers what `place_draws` names

LOG = "log.txt"


class Runner(mmengine.runner.Runner):
    """Runs `config`; whatever the toolboxes have to say goes into `log.txt` of its work_dir."""

    def __init__(self, config: Config, processes: Processes, resumed: Checkpoint | None = None):
        self.processes, self.resumed = processes, resumed
        config = deepcopy(config)
        config.experiment_name = f"saccade-{uuid.uuid4().hex[:8]}"  # its logger, scope and message hub are global
        config.launcher = "none" if processes.size == 1 else "pytorch"
        config.default_hooks = {"logger": None, "checkpoint": None}
        config.visualizer = {"type": "mmengine.Visualizer"}
        config.load_from, config.resume = None, False
        names = signature(mmengine.runner.Runner).parameters.keys() - {"cfg"}
        super().__init__(**{name: config[name] for name in names if name in config}, cfg=config)

    def setup_env(self, env_cfg: dict) -> None:
        super().setup_env(env_cfg)
        self._timestamp = ""  # the directory that mmengine names after it is then the run's own

    def set_randomness(self, seed: int, diff_rank_seed: bool = False, deterministic: bool = False) -> None:
        self._seed, self._deterministic = seed, deterministic
        seed_everything(seed, 0, deterministic)  # every process makes the same model

    def build_logger(self, log_level: str = "INFO", **kwargs: Any) -> MMLogger:
        file = str(Path(self.work_dir) / LOG)
        logger = MMLogger.get_instance(self._experiment_name, log_file=file, log_level=log_level, file_mode="a")
        logger.handlers = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        return logger

    def _log_env(self, env_cfg: dict) -> None:
        """Nothing: environment.json and mmengine.py say it, and asking compilers for their versions takes seconds."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        device = self.processes.device
        model = model.to(device)
        if self.processes.size == 1:
            return revert_sync_batchnorm(model)
        return MMDistributedDataParallel(
            module=model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get("find_unused_parameters", False),
        )

    @property
    def plain_model(self) -> nn.Module:
        """The model itself, as it was before it was wrapped for several processes."""
        return self.model.module if self.processes.size > 1 else self.model

    def dump_config(self) -> None:
        """Keep the configuration in the toolboxes' own form as well."""
        if self.processes.main:
            self.cfg.dump(Path(self.work_dir) / "mmengine.py")

    def load_or_resume(self) -> None:
        """Take up everything the checkpoint saved that mmengine holds."""
        if self.resumed is None:
            return
        state = self.resumed.training_state()
        load_weights(self.plain_model, self.resumed.model)
        self.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(self.param_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        loop, batches = self.train_loop, self.train_dataloader.batch_sampler
        loop._epoch, loop._iter = state["epoch"], state["iteration"]
        if isinstance(loop, mmengine.runner.EpochBasedTrainLoop):
            batches.skip(loop._iter - loop._epoch * len(loop.dataloader))
        else:
            loop.dataloader_iterator.skip_iter = batches.skip

    def state(self, iteration: int, epoch: int) -> dict[str, Any]:
        """What `load_or_resume` wants to find in a checkpoint, beside the weights."""
        return {
            "optimizer": self.optim_wrapper.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self.param_schedulers],
            "epoch": epoch,
            "iteration": iteration,
        }

    def close(self) -> None:
        """Let go of the log."""
        for handler in self.logger.handlers:
            handler.close()


def place_draws(config: Config) -> None:
    """Make the order and the augmentation of training images functions of the seed, see `sampling.py`."""
    loader = config.train_dataloader
    sampler = loader.sampler.type
    if sampler not in ("DefaultSampler", "InfiniteSampler") or not loader.sampler.get("shuffle", True):
        return
    seed = config.randomness.seed
    loader.sampler = {"type": "PlacedSampler", "infinite": sampler == "InfiniteSampler", "seed": seed}
    drop_last = loader.pop("drop_last", False)
    loader.batch_sampler = {"type": "ResumableBatches", "inner": loader.get("batch_sampler"), "drop_last": drop_last}
    loader.dataset = {"type": "SeededDataset", "dataset": loader.dataset, "seed": seed}
