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
    """Return the logits, the gradients and the buffers after a training step, in float32."""
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        logits = function(images)
    gradients = torch.autograd.grad(logits.float().sin().sum(), list(model.parameters()))
    return [value.detach().float() for value in (logits, *gradients, *model.buffers())]


def error(values, truth):
    """Return the root of the mean of squared relative errors."""
    # Some gradients are nothing but rounding, such as that of a bias before a batch norm.
    least = 1e-3 * max(true.norm() for true in truth)
    errors = [(value - true).norm() / true.norm().clamp_min(least) for value, true in zip(values, truth, strict=True)]
    return torch.stack(errors).square().mean().sqrt().item()


@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_step_is_as_exact_as_an_eager_one(name):
    from saccade.tools.engine.compilation import compiled

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **MODELS[name]).cuda().to(memory_format=torch.channels_last).train()
    images = torch.randn(16, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)

    def take(dtype, compiles):
        fresh = copy.deepcopy(model)
        return step(compiled(fresh, "default", dynamic=False) if compiles else fresh, fresh, images, dtype)

    # Else cuDNN rounds float32.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        truth = take(torch.float32, False)
        assert error(take(torch.float32, True), truth) < 1e-3
        plain, found = (error(take(torch.bfloat16, compiles), truth) for compiles in (False, True))
    assert 0 < found < 1.5 * plain + 0.01
