"""InLine attention: the core of "Bridging the Divide"."""

from torch import Tensor, nn

from ..kernels.dynamic_depthwise import dynamic_depthwise_conv2d
from ..kernels.linear import linear_attention
from ..kernels.linear.feature_maps import FEATURE_MAPS
from .attention_core import AttentionCore, Layout, add_map, as_map, resample


class InLineCore(AttentionCore):
    """Linear attention whose weights sum to one by subtraction, and a 3x3 convolution predicted from the token mean.

    The predicted kernel is one of each sample and channel; it convolves the map of values, resized bilinearly where it
    is a reduced one. Prefix tokens take part in the attention alone.

    Args:
        feature_map: name of the feature map of queries and keys among `kernels.linear.feature_maps`.

    Raises:
        ValueError: there is no such feature map.

    Source: arXiv 2412.06590; LeapLabTHU/InLine.
    """

    needs_mean = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        feature_map: str = "identity",
    ):
        super().__init__(dim, num_heads)
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={feature_map!r} is unknown; valid: {', '.join(FEATURE_MAPS)}")
        self.feature_map = feature_map
        self.residual = nn.Sequential(
            nn.Conv1d(dim, dim, 1, groups=num_heads), nn.GELU(), nn.Conv1d(dim, 9 * dim, 1, groups=num_heads)
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        grid, key_grid, prefixed, mean = layout
        if mean is None:
            raise ValueError("mean=None; valid: [B, C], the mean of the layer's input over its tokens")
        out = linear_attention(
            self.split(q),
            self.split(k),
            self.split(v),
            self.feature_map,
            normalizer="subtract",
            scale=(self.dim // self.num_heads) ** -0.5,
            mean=True,
        ).flatten(-2)
        values = as_map(v[:, prefixed:], key_grid)
        if layout.reduced:
            values = resample(values, grid)
        kernels = self.residual(mean.unsqueeze(-1)).reshape(-1, self.dim, 3, 3)
        local = dynamic_depthwise_conv2d(values, kernels)
        return add_map(out, local, prefixed)
