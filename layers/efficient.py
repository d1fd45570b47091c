"""Efficient attention: queries as shares of channels, keys as shares of tokens."""

from torch import Tensor

from ..kernels.linear import linear_attention
from .attention_core import AttentionCore, Layout


class EfficientCore(AttentionCore):
    """Linear attention of queries with softmax over channels and keys with softmax over tokens, nothing to divide by.

    Args:
        grid, key_grid, num_prefix_tokens: without effect; nothing here depends on places.
        key_dim, value_dim: channels of queries and keys, and of values; `dim` by default.
        normalization: "softmax", or "scaling" for queries and keys as they are, over the number of tokens; what comes
            out then grows with the cube of what goes in.

    Raises:
        ValueError: `normalization` is another, or a width is no multiple of `num_heads`.

    Source: arXiv 1812.01243; cmsflash/efficient-attention, which has no scaling variant.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        key_dim: int | None = None,
        value_dim: int | None = None,
        normalization: str = "softmax",
    ):
        super().__init__(dim, num_heads, key_dim, value_dim)
        if normalization not in ("softmax", "scaling"):
            raise ValueError(f"normalization={normalization!r} is unknown; valid: softmax, scaling")
        self.normalization = normalization

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        q, k, v = (self.split(x) for x in (q, k, v))
        if self.normalization == "scaling":
            return linear_attention(q, k, v, normalizer="none", mean=True).flatten(-2)
        return linear_attention(q, k, v, "softmax_channels", "softmax_tokens", "none").flatten(-2)
