"""The shell of RAVLT's attention: projections around a core, a convolution of the values, and a gate."""

from typing import Any

from torch import Tensor, nn

from .attention_core import AttentionCore, add_local, as_map
from .depthwise import DepthwiseConv2d
from .qkv import build_core, project

GATES = {"linear": nn.Identity, "silu": nn.SiLU}


class GatedMixer(nn.Module):
    """Token mixer of one projection to queries, keys, values and a gate, a core, and an output projection.

    proj(norm(core(q, k, v) + local(v)) * act(gate)), `local` a depthwise convolution of the map of values, of which
    prefix tokens have no part. Called with a channels-last map [B, H, W, C] it returns one; called with tokens
    [B, N, C] and the size `grid` (H, W) of their map, the first N - H * W of them prefix tokens, it returns tokens.

    Args:
        core: the attention, for `dim` channels.
        gate: "linear", or "silu" for a gate with that activation.
        normed: whether a LayerNorm comes before the gate.
        kernel_size: extent of the convolution, odd, or None for no convolution.
        value_act: whether values have the gate's activation too.

    Raises:
        ValueError: `gate` is another, or `kernel_size` is not odd and at least 1.

    Source: qhfan/RALA and ZacharyMeng/NaLaFormer; without convolution Doraemonzzz/transnormer-v2-pytorch.
    """

    def __init__(
        self,
        core: AttentionCore,
        gate: str = "linear",
        normed: bool = False,
        kernel_size: int | None = 5,
        value_act: bool = False,
    ):
        super().__init__()
        if gate not in GATES:
            raise ValueError(f"gate={gate!r} is unknown; valid: {', '.join(GATES)}")
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(f"kernel_size={kernel_size} must be odd and at least 1, or None")
        dim = core.dim
        self.qkvg = nn.Linear(dim, 4 * dim)
        self.core = core
        self.local = None
        if kernel_size is not None:
            self.local = DepthwiseConv2d(dim, kernel_size)
        self.norm = nn.LayerNorm(dim) if normed else nn.Identity()
        self.act = GATES[gate]()
        self.value_act = GATES[gate]() if value_act else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Resample the core's tables for maps of size `grid` (H, W)."""
        self.core.set_grid(grid)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        tokens, grid = (x.flatten(1, 2), x.shape[1:3]) if grid is None else (x, grid)
        q, k, v, gate = project(self.qkvg, tokens, [x.shape[-1]] * 4)
        v = self.value_act(v)
        prefixed = tokens.shape[1] - grid[0] * grid[1]
        mean = tokens.mean(1) if self.core.needs_mean else None
        out = self.core(q, k, v, grid, num_prefix_tokens=prefixed, mean=mean)
        if self.local is not None:
            out = add_local(out, self.local, as_map(v[:, prefixed:], grid), prefixed)
        return self.proj(self.norm(out) * self.act(gate)).view(x.shape)


def build_gated_mixer(
    core: str,
    dim: int,
    num_heads: int,
    grid: int | tuple[int, int] = 14,
    gate: str = "linear",
    normed: bool = False,
    kernel_size: int | None = 5,
    value_act: bool = False,
    **options: Any,
) -> GatedMixer:
    """Build a `GatedMixer` around the core of that name.

    Args:
        grid: map size (H, W) that the core's tables are made for, where it has any.
        gate, normed, kernel_size, value_act: as `GatedMixer` takes them.
        options: the core's own.
    """
    return GatedMixer(build_core(core, dim, num_heads, grid, **options), gate, normed, kernel_size, value_act)
