"""The processes of one job: who they are, which device each has, and how they agree."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ..errors import UserError


@dataclass(frozen=True)
class Processes:
    """One process's place among those of the job, as torchrun or SLURM laid it out."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add `values` up over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every process's picklable `value`, in rank order, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, function: Callable[[], Any]) -> Any:
        """Run `function` on the first process only and give all of them what it returned, or the error it raised."""
        answer: list[Any] = [None, None]
        if self.main:
            try:
                answer[0] = function()
            except UserError as error:
                answer[1] = error
        if self.size > 1:
            dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]


def in_first_process() -> bool:
    """Whether this is the job's first process, asked before or after the processes know each other."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def _read_submitit() -> None:
    """Take the layout of a job with several tasks from submitit, which runs Hydra's jobs on SLURM."""
    tasks = os.environ.get("SLURM_NTASKS") or os.environ.get("SUBMITIT_LOCAL_NTASKS")
    if "RANK" in os.environ or tasks is None or int(tasks) < 2:
        return
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            f"this job has {tasks} tasks but no RANK: start it with torchrun, or pip install 'saccade[slurm]'"
        ) from error
    submitit.helpers.TorchDistributedEnvironment().export()


def _pick_device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise UserError(f"runtime.device=cuda, process {local_rank} of this machine: {found} GPUs found; use cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


@contextmanager
def connect(device: str) -> Iterator[Processes]:
    """Join the processes of this job (nccl on GPUs, gloo on CPUs) and leave them at the end.

    `device` is auto, cpu or cuda. Alone, without torchrun or SLURM, nothing is started.
    """
    _read_submitit()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield Processes(0, 1, chosen)
        return
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo", device_id=chosen if chosen.type == "cuda" else None
    )
    yield Processes(dist.get_rank(), size, chosen)
    if chosen.type == "cpu":
        # gloo's thread may still want the interpreter's lock, to let go of the last result; a process group that is
        # destroyed waits for this thread without giving the lock up.
        time.sleep(0.5)
    dist.destroy_process_group()  # not after an error: it would wait for processes that know nothing of it
