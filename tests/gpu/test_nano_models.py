"""Small models of every family on a GPU, down to maps of one token, against torch's definitions there."""

import copy

import pytest
import timm
import torch
from training_step import error, step

import saccade

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (40, 66)])
@pytest.mark.parametrize("name", saccade.list_models("*_nano"))
def test_a_training_step_equals_the_definition(name, size):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, drop_path_rate=0.0)
    if hasattr(model, "set_input_size"):
        model.set_input_size(size)
    model.cuda().train()
    images = torch.randn(8, 3, *size, device="cuda")
    # Else cuDNN rounds float32.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        with saccade.backend("reference"):
            other = copy.deepcopy(model)
            truth = step(other, other, images)
        assert error(step(model, model, images), truth) < 1e-3
        with torch.autocast("cuda", torch.bfloat16):
            logits = model.eval()(images)
        logits.float().sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
