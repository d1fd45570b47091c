"""Random neighborhood attention calls, and the distance between results."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st


@dataclass
class Case:
    shape: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    causal: tuple[bool, ...]
    bias: bool
    batch: int
    heads: int
    dim: int
    seed: int

    @property
    def settings(self) -> dict:
        return {"window": self.window, "stride": self.stride, "dilation": self.dilation, "causal": self.causal}

    def tensors(self, dtype=torch.float64, device="cpu"):
        """Return q, k, v as views of one packed projection, and the bias or None."""
        generator = torch.Generator().manual_seed(self.seed)
        qkv = torch.randn(self.batch, *self.shape, 3, self.heads, self.dim, generator=generator, dtype=torch.float64)
        bias = torch.randn(self.heads, *(2 * w - 1 for w in self.window), generator=generator, dtype=torch.float64)
        q, k, v = qkv.to(device, dtype).unbind(-3)
        return q, k, v, bias.to(device, dtype) if self.bias else None


@st.composite
def cases(draw, ranks=(1, 2, 3), slack=(40, 12, 4), bias=None, causal=True, max_window=7, dims=(1, 4, 8)):
    rank = draw(st.sampled_from(ranks))
    with_bias = draw(st.booleans()) if bias is None else bias
    window = [draw(st.integers(1 if with_bias else 2, max_window if rank < 3 else 4)) for _ in range(rank)]
    if with_bias:
        window = [w + 1 - w % 2 for w in window]
    dilation = [draw(st.integers(1, 3)) for _ in range(rank)]
    return Case(
        shape=tuple(w * d + draw(st.integers(0, slack[rank - 1])) for w, d in zip(window, dilation, strict=True)),
        window=tuple(window),
        stride=tuple(draw(st.integers(1, w)) for w in window),
        dilation=tuple(dilation),
        causal=tuple(causal and draw(st.integers(0, 3)) == 0 for _ in range(rank)),
        bias=with_bias,
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        dim=draw(st.sampled_from(dims)),
        seed=draw(st.integers(0, 2**31)),
    )


def distance(value: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of the truth, absolute where the truth is next to nothing."""
    assert value.shape == truth.shape
    return ((value.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-2)).item()
