"""Compiled training steps on a GPU against eager ones: what compiled models do otherwise must not show."""

import copy

import pytest
import timm
import torch
from training_step import error, step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

MODELS = {
    "van_nano": {"depths": (1, 1, 1, 1), "drop_path_rate": 0.0},
    "litv2_nano": {"drop_path_rate": 0.0},
    "flatten_swin_nano": {"drop_path_rate": 0.0, "img_size": 64},
}


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
