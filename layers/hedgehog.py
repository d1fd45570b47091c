"""Hedgehog: linear attention with learnt feature maps that can be as pointed as softmax."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.linear import linear_attention
from ..kernels.precision import widen
from .attention_core import AttentionCore, Layout

KINDS = {
    "softmax": "hedgehog",
    "exp": "hedgehog_exponential",
    "half": "hedgehog_half",
    "relu": "transformer_to_rnn",
    "joint": "hedgehog_half",
}


class HedgehogCore(AttentionCore):
    """Linear attention whose features are softmaxes of a learnt projection and of its negative.

    A projection starts as the identity, or with `skip` as zero. Prefix tokens are tokens as any other.

    Args:
        grid, key_grid, num_prefix_tokens: without effect; nothing here depends on places.
        features: channels of the projection; by default those of a head. There are twice as many features.
        kind: "softmax"; "exp" for exponentials of the distance to the largest and to the smallest channel; "half" for
            the softmax of the projection alone; "relu" for Transformer-to-RNN's rectified projection; "joint" for one
            softmax over twice the projection and twice its negative, as flash-linear-attention has it.
        bias: whether the projection has a bias, one number for each head, with "joint" one for each channel. By default
            with "joint" only.
        shared_heads: whether the heads share a projection, by default with "joint" only.
        shared_map: whether keys have the projection of queries.
        skip: add the projection to what it projects, instead of replacing it.

    Raises:
        ValueError: `kind` is another, `features` less than 1, or not those of a head with `skip`.

    Source: arXiv 2402.04347; HazyResearch/lolcats, and fla-org/flash-linear-attention for "joint".
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        features: int | None = None,
        kind: str = "softmax",
        bias: bool | None = None,
        shared_heads: bool | None = None,
        shared_map: bool = False,
        skip: bool = False,
    ):
        super().__init__(dim, num_heads)
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is unknown; valid: {', '.join(KINDS)}")
        width = dim // num_heads
        features = width if features is None else features
        if features < 1 or (skip and features != width):
            raise ValueError(f"features={features} must be at least 1, and with skip=True {width}, those of a head")
        self.kind = kind
        joint = kind == "joint"
        heads = 1 if (joint if shared_heads is None else shared_heads) else num_heads
        biases = features if joint else 1
        start = torch.zeros(width, features) if skip else torch.eye(width, features)
        for side in ("query",) if shared_map else ("query", "key"):
            self.register_parameter(f"{side}_map", nn.Parameter(start.repeat(heads, 1, 1)))
            offset = nn.Parameter(torch.zeros(heads, 1, biases)) if (joint if bias is None else bias) else None
            self.register_parameter(f"{side}_bias", offset)
        self.shared_map = shared_map
        self.skip = skip

    def matrix(self, side: str) -> Tensor:
        """Return the projection of "query" or "key" as a matrix [heads, D or D + 1, F], the last row the bias."""
        side = "query" if self.shared_map else side
        matrix, bias = widen(getattr(self, f"{side}_map")), getattr(self, f"{side}_bias")
        if self.skip:
            matrix = matrix + torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        if bias is not None:
            matrix = torch.cat((matrix, bias.to(matrix.dtype).expand(-1, 1, matrix.shape[-1])), 1)
        if self.kind == "joint":
            matrix = torch.cat((2 * matrix, -2 * matrix), -1)
        return matrix.expand(self.num_heads, -1, -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        q, k = self.split(q), self.split(k)
        if self.query_bias is not None:
            q, k = (F.pad(x, (0, 1), value=1.0) for x in (q, k))
        name = KINDS[self.kind]
        return linear_attention(
            q,
            k,
            self.split(v),
            name,
            query_parameter=self.matrix("query"),
            key_parameter=self.matrix("key"),
            eps=1e-12,
        ).flatten(-2)
