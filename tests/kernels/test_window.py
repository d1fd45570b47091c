"""Window attention is dense attention under a mask, and neighborhood attention whose stride is its window."""

import pytest
import torch
from hypothesis import given, settings
from neighborhood_cases import distance
from window_cases import Case, cases, dense

from saccade.kernels.neighborhood import neighborhood_attention
from saccade.kernels.window import window_attention


def weighted_sum(out, lse):
    """Return a number that depends on every entry; the log-sum-exp of a query that sees no key is left out."""
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return (out * weight).sum() + (lse.masked_fill(lse.isinf(), 0) ** 2).sum()


@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_equals_dense_masked_attention(case):
    *inputs, mask = case.tensors()
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    given = [x for x in inputs if x is not None]
    q, k, v, bias = inputs
    out, lse = window_attention(q, k, v, case.window, bias=bias, mask=mask, scale=0.7, return_lse=True)
    true_out, true_lse = dense(case, q, k, v, bias, mask, scale=0.7)
    assert distance(out, true_out) < 1e-12
    torch.testing.assert_close(lse, true_lse, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(weighted_sum(out, lse), given)
    assert all(gradient.isfinite().all() for gradient in found)
    if not true_lse.isinf().any():  # the gradient of a plain softmax over no keys is not a number
        truth = torch.autograd.grad(weighted_sum(true_out, true_lse), given)
        assert all(distance(value, true) < 1e-12 for value, true in zip(found, truth, strict=True))


@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_equals_neighborhood_attention_whose_stride_is_the_window(case):
    q, k, v, _, _ = case.tensors()
    out, lse = window_attention(q, k, v, case.window, return_lse=True)
    truth, true_lse = neighborhood_attention(q, k, v, case.window, stride=case.window, return_lse=True)
    assert distance(out, truth) < 1e-12
    assert distance(lse, true_lse) < 1e-12


@pytest.mark.parametrize("mask_kind", ["boolean", "additive"])
def test_a_query_that_sees_no_key_gives_zeros(mask_kind):
    case = Case((2, 3), (2, 2), True, mask_kind, 2, 2, 4, 4, seed=5)
    q, k, v, bias, mask = case.tensors()
    mask = mask | torch.eye(6, dtype=torch.bool) if mask_kind == "boolean" else mask.clamp_min(-9)
    mask[1, 4] = False if mask_kind == "boolean" else float("-inf")
    inputs = [x.detach().requires_grad_() for x in (q, k, v, bias)]
    out, lse = window_attention(*inputs[:3], case.window, bias=inputs[3], mask=mask, return_lse=True)
    # Window 1 covers rows 0 and 1, columns 3 to 5; its token 4 is (1, 4).
    assert not out[:, 1, 4].any()
    assert (lse[:, 1, 4] == float("-inf")).all()
    assert lse[:, 0].isfinite().all()
    gradients = torch.autograd.grad(out.sum() + lse[:, 0].sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][:, 1, 4].any()


def test_swin_window_attention():
    """timm's Swin block attends the same way: shifted windows, relative position bias and mask."""
    from timm.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(12, (8, 8), num_heads=3, window_size=4, shift_size=2).double().eval()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(2, 8, 8, 12, dtype=torch.float64)
    q, k, v = block.attn.qkv(x.roll((-2, -2), (1, 2))).unflatten(-1, (3, 3, 4)).unbind(-3)
    bias = block.attn._get_rel_pos_bias()[0]
    out = window_attention(q, k, v, 4, bias=bias, mask=block.attn_mask.double())
    out = block.attn.proj(out.flatten(-2)).roll((2, 2), (1, 2))
    assert distance(out, block._attn(x)) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 1e-6)])
def test_low_precision_stays_near_float64(dtype, tolerance):
    case = Case((4, 3), (2, 3), True, "additive", 2, 2, 16, 16, seed=0)
    *tensors, mask = case.tensors(dtype)
    rounded = [x.detach().double().requires_grad_() for x in tensors]
    inputs = [x.detach().requires_grad_() for x in tensors]
    truth = window_attention(*rounded[:3], case.window, bias=rounded[3], mask=mask.double())
    cotangent = torch.randn(truth.shape).to(dtype)
    true_gradients = torch.autograd.grad(truth, rounded, cotangent.double())
    out, lse = window_attention(*inputs[:3], case.window, bias=inputs[3], mask=mask, return_lse=True)
    found = torch.autograd.grad(out, inputs, cotangent)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert distance(out, truth) < tolerance
    for value, true in zip(found, true_gradients, strict=True):
        assert value.dtype == dtype
        assert distance(value, true) < tolerance
