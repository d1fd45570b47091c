"""Accelerated models of timm on a GPU, with the kernels that serve them there and with the fused ones."""

import copy

import pytest
import timm
import torch
from torch import nn

import saccade

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MODELS = (
    "swin_tiny_patch4_window7_224",
    "focalnet_tiny_srf",
    "davit_tiny",
    "twins_svt_small",
    "tiny_vit_5m_224",
    "maxvit_nano_rw_256",
    "gcvit_xxtiny",
    "hiera_tiny_224",
    "halonet26t",
)


def build(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Return a model, an accelerated copy, and images."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, drop_path_rate=0.0).cuda()
    images = torch.randn(4, *model.pretrained_cfg["input_size"], device="cuda")
    faster = saccade.accelerate(copy.deepcopy(model), report=None, unmeasured=True)
    assert any(type(module).__module__.startswith("saccade.") for module in faster.modules())
    return model, faster, images.contiguous(memory_format=torch.channels_last)


def run(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the output and all gradients under bfloat16 autocast, in float32."""
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        out = model(images)
    out.float().square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"output": out.float(), **gradients}


@pytest.mark.parametrize("backend", ["auto", "fused"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_as_close_as_timms(name, backend):
    model, faster, images = build(name)
    theirs = run(model, images)
    with saccade.backend(backend):
        ours = run(faster, images)
    assert ours.keys() == theirs.keys()
    model.zero_grad()
    out = model(images)
    out.square().sum().backward()
    expected = {"output": out, **{name: parameter.grad for name, parameter in model.named_parameters()}}
    for key, value in theirs.items():
        error, allowed = ((x - expected[key]).norm().item() for x in (ours[key], value))
        assert error <= 3 * allowed + 1e-2 * expected[key].norm().item(), key


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "focalnet_tiny_srf"])
def test_compiles_with_graphs(name):
    model, faster, images = build(name)
    for one in (model, faster):
        one.eval()
    compiled = torch.compile(faster, fullgraph=True, mode="reduce-overhead")
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for _ in range(3):
            out = compiled(images).clone()
        expected = model(images)
    assert (out - expected).float().norm() < 0.02 * expected.float().norm()
