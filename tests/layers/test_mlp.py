"""The MLP equals timm's, and when compiled keeps one wide tensor less for the backward."""

import timm.layers
import torch

from saccade.layers import Mlp


def kept(module, x):
    """What a compiled step keeps for its backward, in elements of the hidden layer's shape."""
    torch._dynamo.reset()
    found = {}

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = torch.compile(module, fullgraph=True, backend="aot_eager_decomp_partition")(x)
    return out, sum(size == x.shape[0] * 64 for size in found.values())


def test_compiled_keeps_no_activation():
    torch.manual_seed(0)
    theirs, ours = timm.layers.Mlp(16, 64), Mlp(16, 64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(10, 16, requires_grad=True)
    plain = theirs(x)
    torch.testing.assert_close(ours(x), plain)
    expected = torch.autograd.grad(plain.square().sum(), (x, *theirs.parameters()))
    _, more = kept(theirs, x)
    out, fewer = kept(ours, x)
    assert (more, fewer) == (2, 1)
    for a, b in zip(torch.autograd.grad(out.square().sum(), (x, *ours.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_compiles_inside_checkpointed_blocks():
    torch._dynamo.reset()
    model = torch.nn.Sequential(Mlp(8, 32, drop=0.1))
    x = torch.randn(4, 8, requires_grad=True)

    def step(x):
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)

    torch.compile(step, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert torch.isfinite(x.grad).all()
