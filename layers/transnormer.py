"""TransNormer: linear attention with a norm in place of a denominator, and softmax attention in blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import autocast
from ..kernels.linear import linear_attention
from ..kernels.linear.feature_maps import FEATURE_MAPS
from ..kernels.precision import narrow, widen
from ..kernels.window import window_attention
from .attention_core import AttentionCore, Layout
from .rotary import coordinates

ACTS = ("elu_plus_one", "elu", "relu", "leaky_relu", "silu", "identity")
BLOCK_WEIGHTS = ("softmax", "relu")


class SimpleRMSNorm(nn.Module):
    """Divide by the root mean square over the last axis plus 1e-8, without weights; taken in float32 at least.

    Source: OpenNLPLab/im.
    """

    def forward(self, x: Tensor) -> Tensor:
        with autocast.off(x):
            wide = widen(x)
            length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            return (wide / (length * x.shape[-1] ** -0.5 + 1e-8)).to(x.dtype)


class WideLayerNorm(nn.LayerNorm):
    """LayerNorm in the dtype of its input, whatever that of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (p.to(x.dtype) for p in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


NORMS = {"rms": lambda dim: SimpleRMSNorm(), "layer": WideLayerNorm}


class LearntRotation(nn.Module):
    """Reflect the channels of heads at a fixed plane, then turn pairs of neighbours by learnt angles: LRPE.

    A token at (row, column) turns by `theta` * (row + column), prefix tokens not at all; a last channel without a
    neighbour stays. The buffer `normal` is the plane's, taken as of length 1.

    Args:
        width: channels D of a head.

    Source: arXiv 2210.10340; OpenNLPLab/im.
    """

    def __init__(self, width: int):
        super().__init__()
        self.theta = nn.Parameter(10000.0 ** (-2 / width * torch.arange(width // 2)))
        normal = torch.randn(width)
        self.register_buffer("normal", normal / normal.norm())

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """Turn x [B, N, heads, D] at the rows and columns `places` [2, N]."""
        normal = self.normal.to(x.dtype)
        x = x - 2 * (x @ normal).unsqueeze(-1) * normal
        angles = places.sum(0).outer(self.theta.to(x.dtype)).unsqueeze(1)
        pairs = 2 * self.theta.shape[0]
        even, odd = x[..., 0:pairs:2], x[..., 1:pairs:2]
        cosine, sine = angles.cos(), angles.sin()
        turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), -1).flatten(-2)
        return torch.cat((turned, x[..., pairs:]), -1)


class TransNormerCore(AttentionCore):
    """Linear attention without a denominator, whose output has a norm over all heads together.

    As sums have no bound, all of it is taken in float32 at least.

    Args:
        grid, key_grid, num_prefix_tokens: taken as every core takes them; positions are made anew for each map.
        act: the feature map of queries and keys, one of `ACTS`.
        rotary: whether features are turned by learnt angles.
        norm: "rms" for a norm without weights, or "layer".
        block: attend inside blocks of this extent instead, as the first half of a model's layers does. A map is
            zero-padded to a multiple, and padding counts as keys; `act` has no effect.
        block_weights: weights of a block's scores, "softmax", or "relu" with the norm.

    Raises:
        ValueError: an option is another, or a core with blocks is called with prefix tokens or a reduced map of keys.

    Source: arXiv 2210.10340; OpenNLPLab/im.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        act: str = "elu_plus_one",
        rotary: bool = True,
        norm: str = "rms",
        block: int | None = None,
        block_weights: str = "softmax",
    ):
        super().__init__(dim, num_heads)
        for name, value, valid in (
            ("act", act, ACTS),
            ("norm", norm, NORMS),
            ("block_weights", block_weights, BLOCK_WEIGHTS),
        ):
            if value not in valid:
                raise ValueError(f"{name}={value!r} is unknown; valid: {', '.join(valid)}")
        if block is not None and block < 1:
            raise ValueError(f"block={block} must be at least 1, or None")
        self.act = act
        self.block = block
        self.block_weights = block_weights
        self.rotation = LearntRotation(dim // num_heads) if rotary else None
        normed = block is None or block_weights == "relu"
        self.norm = NORMS[norm](dim) if normed else nn.Identity()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        dtype = v.dtype
        with autocast.off(v):
            q, k, v = (widen(self.split(x)) for x in (q, k, v))
            attend = self._linearly if self.block is None else self._in_blocks
            return narrow(self.norm(attend(q, k, v, layout).flatten(-2)), dtype)

    def _turned(self, q: Tensor, k: Tensor, layout: Layout) -> list[Tensor]:
        return [self.rotation(x, places) for x, places in zip((q, k), coordinates(q, layout), strict=True)]

    def _linearly(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        if self.rotation is None:
            return linear_attention(q, k, v, self.act, normalizer="none")
        # The reflection comes between the features and their turning, which the operator does not part.
        features = (FEATURE_MAPS[self.act](x, None, 1.0)[0] for x in (q, k))
        return linear_attention(*self._turned(*features, layout), v, normalizer="none")

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        if layout.num_prefix_tokens or layout.reduced:
            raise ValueError(
                f"block={self.block} needs one map of queries and keys, without prefix tokens; valid here: None"
            )
        if self.rotation is not None:
            q, k = self._turned(q, k, layout)
        height, width = layout.grid
        pad = (0, 0, 0, 0, 0, -width % self.block, 0, -height % self.block)
        q, k, v = (F.pad(x.unflatten(1, layout.grid), pad) for x in (q, k, v))
        if self.block_weights == "softmax":
            out = window_attention(q, k, v, self.block)
        else:
            out = _rectified_windows(q, k, v, self.block)
        return out[:, :height, :width].flatten(1, 2)


def _rectified_windows(q: Tensor, k: Tensor, v: Tensor, extent: int) -> Tensor:
    """Attend from each token of a map [B, H, W, heads, D] to those of its window with weights relu(q . k D ** -0.5)."""

    def cut(x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, extent)).unflatten(1, (-1, extent))
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(-3, -2)

    queries, keys, values = (cut(x) for x in (q, k, v))
    out = F.relu(queries * q.shape[-1] ** -0.5 @ keys.mT) @ values
    out = out.unflatten(-2, (extent, extent)).permute(0, 1, 4, 2, 5, 3, 6)
    return out.flatten(3, 4).flatten(1, 2)
