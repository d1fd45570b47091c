"""Random window attention calls, and window attention as dense attention under a mask over all pairs of tokens."""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st


@dataclass
class Case:
    window: tuple[int, ...]
    counts: tuple[int, ...]
    bias: bool
    mask: str | None
    batch: int
    heads: int
    dim: int
    value_dim: int
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(extent * count for extent, count in zip(self.window, self.counts, strict=True))

    def tensors(self, dtype=torch.float64, device="cpu"):
        """Return q, k, v as views of one packed projection, and bias and mask or None."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        split = (self.dim, self.dim, self.value_dim)
        packed = draw(self.batch, *self.shape, self.heads, sum(split)).to(device, dtype)
        tokens = math.prod(self.window)
        bias = draw(self.heads, tokens, tokens).to(device, dtype) if self.bias else None
        mask = draw(math.prod(self.counts), tokens, tokens) if self.mask else None
        if self.mask == "boolean":
            mask = mask > 0
        elif self.mask:
            # Some entries hide their key, as a mask made of minus infinities does.
            mask = mask.masked_fill(mask > 1, float("-inf")).to(dtype)
        return *packed.split(split, -1), bias, mask if mask is None else mask.to(device)


@st.composite
def cases(draw):
    rank = draw(st.integers(1, 3))
    return Case(
        window=tuple(draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank)),
        counts=tuple(draw(st.integers(1, 4 if rank < 3 else 2)) for _ in range(rank)),
        bias=draw(st.booleans()),
        mask=draw(st.sampled_from([None, "boolean", "additive"])),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        dim=draw(st.sampled_from([1, 4, 8])),
        value_dim=draw(st.sampled_from([1, 4, 6])),
        seed=draw(st.integers(0, 2**31)),
    )


def dense(case, q, k, v, bias, mask, scale=None):
    """Return output and log-sum-exp by brute force: every token is told its window and its place there."""
    axes = torch.meshgrid(*(torch.arange(length) for length in case.shape), indexing="ij")
    window = place = torch.zeros(case.shape, dtype=torch.long)
    for index, extent, count in zip(axes, case.window, case.counts, strict=True):
        window = window * count + index // extent
        place = place * extent + index % extent
    window, place = window.flatten(), place.flatten()
    queries, keys, values = (x.flatten(1, -3).transpose(1, 2) for x in (q, k, v))
    logits = queries @ keys.mT * (case.dim**-0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias[:, place[:, None], place]
    if mask is not None:
        entries = mask[window[:, None], place[:, None], place]
        logits = logits.masked_fill(~entries, float("-inf")) if mask.dtype == torch.bool else logits + entries
    logits = logits.masked_fill(window[:, None] != window, float("-inf"))
    lse = logits.logsumexp(-1)
    out = logits.softmax(-1).nan_to_num() @ values
    return out.transpose(1, 2).reshape(v.shape), lse.transpose(1, 2).reshape(q.shape[:-1])
