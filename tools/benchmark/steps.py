"""Steps of inference and training of whole models on random images, under bfloat16 autocast."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from ...models.accelerate import accelerate
from ..engine.compilation import compiled
from ..engine.modeling import lay_channels_last

# With CUDA graphs ("reduce-overhead") a fast GPU does not wait for the CPU to launch kernels.
COMPILATIONS = ("reduce-overhead", "default", "max-autotune", "none")
BATCH = {"infer": 256, "train": 128}
"""Images of 224 pixels; of others as many as have the same number of pixels."""


def batch_size(measure: str, size: int, device: torch.device) -> int:
    """Return how many images of that size a step takes."""
    return max(1, BATCH[measure] * 224**2 // size**2) if device.type == "cuda" else 2


def build(name: str, size: int, device: torch.device) -> nn.Module:
    """Return an untrained model for images of that size."""
    cfg = timm.get_pretrained_cfg(name)
    other = cfg is None or cfg.input_size[-1] != size
    fixed = other and cfg is not None and cfg.fixed_input_size
    model = timm.create_model(name, **({"img_size": size} if fixed else {}))
    if other and not fixed and hasattr(model, "set_input_size"):
        # So that no table is resampled in every step.
        model.set_input_size(size)
    lay_channels_last(model)
    return model.to(device)


def step_of(
    measure: str, name: str, size: int, device: torch.device, compilation: str, accelerated: bool = False
) -> Callable[[], object]:
    """Return a step of inference or training of a model on random images; its first call compiles."""
    model = build(name, size, device)
    if accelerated:
        accelerate(model, report=None, unmeasured=True)
    batch = batch_size(measure, size, device)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    call = model if compilation == "none" else compiled(model, compilation, dynamic=False)
    return (inference if measure == "infer" else training)(model, call, images)


def inference(model: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    """Return a step of inference under bfloat16 autocast."""
    model.eval()

    def step() -> Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16):
            return call(images)

    return step


def training(model: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    """Return a step of training under bfloat16 autocast: forward, backward, AdamW."""
    model.train()
    labels = torch.randint(0, 1000, images.shape[:1], device=images.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=images.is_cuda)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(call(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
