"""What one training step computes, and how far it is from another."""

import torch


def step(function, model, images, dtype=torch.float32):
    """Return the logits, the gradients and the buffers after a training step under autocast, in float32."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        logits = function(images)
    gradients = torch.autograd.grad(logits.float().sin().sum(), list(model.parameters()))
    return [value.detach().float() for value in (logits, *gradients, *model.buffers())]


def error(values, truth):
    """Return the root of the mean of squared relative errors."""
    # Some gradients are nothing but rounding, such as that of a bias before a batch norm.
    least = 1e-3 * max(true.norm() for true in truth)
    errors = [(value - true).norm() / true.norm().clamp_min(least) for value, true in zip(values, truth, strict=True)]
    return torch.stack(errors).square().mean().sqrt().item()
