"""Compiled training steps on a GPU against eager ones: what compiled models do otherwise must not show."""

import copy

import pytest
import timm
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

MODELS = {
    "van_nano": {"depths": (1, 1, 1, 1), "drop_path_rate": 0.0},
    "litv2_nano": {"drop_path_rate": 0.0},
}


def step(function, model, images, dtype):
    """Return the logits, the gradients and the buffers after a training step."""
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        logits = function(images)
    gradients = torch.autograd.grad(logits.float().sin().sum(), list(model.parameters()))
    return [logits.detach(), *gradients, *(buffer.float() for buffer in model.buffers())]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_step_is_an_eager_one(name, dtype, tolerance):
    from saccade.tools.engine.compilation import compiled

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **MODELS[name]).cuda().to(memory_format=torch.channels_last).train()
    images = torch.randn(16, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    other = copy.deepcopy(model)
    # Else cuDNN rounds float32.
    with torch.backends.cudnn.flags(allow_tf32=False):
        truth = step(model, model, images, dtype)
        found = step(compiled(other, "default", dynamic=False), other, images, dtype)
    # Some gradients are nothing but rounding, such as that of a bias before a batch norm.
    least = 0.05 * max(value.norm() for value in truth[1:])
    for ours, true in zip(found, truth, strict=True):
        assert ours.dtype == true.dtype and ours.isfinite().all()
        assert (ours - true).norm() < tolerance * max(true.norm(), least)
