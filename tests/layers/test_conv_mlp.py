"""MLPs with a convolution inside, and the layer scale that they take over in compiled training."""

import pytest
import torch
from neighborhood_cases import distance
from torch import nn

from saccade.layers import ConvMLP, MixerBlock


def block():
    torch.manual_seed(0)
    mlp = ConvMLP(6, 12)
    block = MixerBlock(6, None, mlp, layer_scale=0.1, drop_path=0.0).double().train()
    nn.init.uniform_(block.ls2.gamma, 0.5, 1.5)
    return block, torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(function, module, x):
    out = function(x)
    return out.detach(), torch.autograd.grad(out.sin().sum(), list(module.parameters()))


@pytest.mark.parametrize("watched", [False, True])
def test_compiled_training_folds_the_layer_scale_and_the_bias_gradient(watched):
    module, x = block()
    seen = []
    if watched:
        for linear in (module.mlp.fc1, module.mlp.fc2):
            linear.register_forward_hook(lambda *_: seen.append(1))
    out, truth = gradients(module, module, x)
    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    found_out, found = gradients(torch.compile(module, backend=record), module, x)
    assert distance(found_out, out) < 1e-12
    assert all(distance(a, b) < 1e-12 for a, b in zip(found, truth, strict=True))
    # Folded, the scale multiplies the weight [6, 12]; else the map.
    products = [
        node.meta["example_value"].shape
        for node in graphs[0].graph.nodes
        if node.meta.get("example_value") is not None and node.op == "call_function" and "mul" in node.name
    ]
    assert (torch.Size((6, 12)) in products) is not watched
    # The convolution is given the bias before it, else None.
    (convolution,) = (node for node in graphs[0].graph.nodes if "depthwise_conv2d" in str(node.target))
    assert (convolution.args[3] is None) is watched


def test_a_gain_multiplies_the_output():
    module, x = block()
    gain = torch.rand(6, dtype=torch.float64)
    assert distance(module.mlp(x, gain=gain), module.mlp(x) * gain) < 1e-12
