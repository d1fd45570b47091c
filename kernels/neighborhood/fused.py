"""Fused neighborhood attention in Triton: no attention matrix and no gathered keys in memory, any strides, any map.

Serves float16, bfloat16 and float32 tensors on CUDA devices, head dimensions 8 to 256 in steps of 8. Under
TRITON_INTERPRET=1 also CPU tensors, slowly.
"""

import math

import torch
import triton
from torch import Tensor

from .fused_backward import differentiate_queries, differentiate_queries_chunks
from .fused_backward_keys import differentiate_group, differentiate_keys, differentiate_keys_chunks
from .fused_config import Config, choose, cut_block
from .fused_forward import attend_block, attend_chunks
from .fused_tiles import LOG2E, build_tables
from .geometry import Geometry
from .tiling import Tiling, packed, tile_map

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TABLE_BYTES = 1 << 26
SCRATCH_BYTES = 1 << 26


def unsupported(direction: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    if q.device.type != "cuda" and not triton.knobs.runtime.interpret:
        return f"needs CUDA tensors, got {q.device.type}"
    if q.dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        return "Triton's interpreter has no bfloat16 products"
    if q.dtype not in DTYPES:
        return f"needs float16, bfloat16 or float32, got {q.dtype}"
    if v.shape[-1] != q.shape[-1]:
        return f"needs v with the head dimension of q, {q.shape[-1]}, got {v.shape[-1]}"
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        return f"needs a head dimension of 8 to 256 in steps of 8, got {q.shape[-1]}"
    if math.prod(2 * axis.window - 1 for axis in geometry.axes) >= 1 << 20:
        return "needs windows of fewer than 2^20 relative positions"
    return None


def _strides(x: Tensor) -> tuple[int, ...]:
    """Strides of [B, *spatial, heads, D] as [B, z, y, x, heads]."""
    strides = x.stride()
    return (strides[0], *(0,) * (6 - x.dim()), *strides[1:-1])


def _readable(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _wide(*tensors: Tensor) -> bool:
    """Whether offsets within an image may not fit in 32 bits."""
    return any(
        sum((n - 1) * abs(s) for n, s in zip(x.shape[1:], x.stride()[1:], strict=True)) >= 1 << 31 for x in tensors
    )


class Launch:
    """What every kernel of one call shares: shapes, strides, compile-time flags, and how the batch is sliced."""

    def __init__(self, q: Tensor, bias: Tensor | None, geometry: Geometry, scale: float, wide: bool):
        self.q, self.bias, self.geometry, self.scale = q, bias, geometry, scale
        self.batch, self.heads, self.width = q.shape[0], q.shape[-2], q.shape[-1]
        self.flags = {
            "D": self.width,
            "WIDTH": max(16, triton.next_power_of_2(self.width)),
            "HAS_BIAS": bias is not None,
            "PLAIN": all(axis.stride == axis.dilation == 1 and not axis.causal for axis in geometry.axes),
            "WIDE": wide,
            "PRECISION": "ieee",
        }

    def config(self, kernel: str) -> Config:
        return choose(kernel, self.geometry, self.q.dtype, self.width, self.bias is not None, self.batch)

    def tiling(self, config: Config, inverse: bool = False) -> Tiling:
        tiling = tile_map(self.geometry, config.tile, inverse)
        if config.group:
            axes = tuple(axis._replace(extent=axis.tile) for axis in tiling.axes)
            tiling = tiling._replace(axes=axes)
        return tiling

    def slices(self, config: Config, programs: int) -> tuple[int, int]:
        """Slices of the batch and images in each, given the programs that one slice takes."""
        wanted = max(1, min(self.batch, config.programs // max(1, programs)))
        images = -(-self.batch // wanted)
        return -(-self.batch // images), images

    def sizes(self, config: Config, tiling: Tiling) -> dict:
        """The compile-time sizes of a kernel."""
        if not config.whole:
            columns = -(-tiling.block // config.chunk) * config.chunk
            return {"ROWS": config.rows, "CHUNK": config.chunk, "COLUMNS": columns}
        chunks = cut_block(tiling.block, config.chunk)
        starts = tuple(sum(chunks[:c]) for c in range(len(chunks)))
        sizes = {"ROWS": config.rows, "CHUNKS": chunks, "STARTS": starts, "COLUMNS": sum(chunks)}
        return {**sizes, "HELD": config.held}

    def tables(self, config: Config, tiling: Tiling, columns: int, inverse: bool) -> Tensor | None:
        """Build the tables of logits of a tiling, or return None where each program builds its own."""
        heads = 1 if self.bias is None else self.heads
        size = heads * tiling.classes * config.rows * columns
        if not config.stored or size == 0 or 4 * size > TABLE_BYTES:
            return None
        table = torch.empty(heads, tiling.classes, config.rows, columns, dtype=torch.float32, device=self.q.device)
        chunk = columns & -columns
        build_tables[(tiling.classes, columns // chunk, heads)](
            table,
            self.bias,
            packed(tiling.axes),
            ROWS=config.rows,
            COLUMNS=columns,
            CHUNK=chunk,
            INVERSE=inverse,
            HAS_BIAS=self.flags["HAS_BIAS"],
            PLAIN=self.flags["PLAIN"],
        )
        return table


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output [B, *spatial, heads, D] and the log-sum-exp [B, *spatial, heads] in float32."""
    q, k, v = _readable(q), _readable(k), _readable(v)
    bias = None if bias is None else bias.contiguous()
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    if not out.numel():
        return out, lse
    launch = Launch(q, bias, geometry, scale, _wide(q, k, v, out))
    run_forward(launch, launch.config("forward"), q, k, v, out, lse)
    return out, lse


def run_forward(launch: Launch, config: Config, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
    tiling = launch.tiling(config)
    sizes = launch.sizes(config, tiling)
    columns = sizes["COLUMNS"]
    table = launch.tables(config, tiling, columns, False)
    slices, images = launch.slices(config, tiling.tiles * launch.heads)
    if config.whole:
        sizes["SHARED"] = k.stride() == v.stride()
    kernel = attend_block if config.whole else attend_chunks
    kernel[(tiling.tiles, launch.heads, slices)](
        q,
        k,
        v,
        launch.bias,
        table,
        out,
        lse,
        _strides(q),
        _strides(k),
        _strides(v),
        _strides(out),
        _strides(lse.unsqueeze(-1)),
        packed(tiling.axes),
        launch.batch,
        launch.heads,
        images,
        launch.scale * LOG2E.value,
        STORED=table is not None,
        **sizes,
        **launch.flags,
        num_warps=config.warps,
        num_stages=config.stages,
        maxnreg=config.registers,
    )


def backward(
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    geometry: Geometry,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of q, k, v and bias, given those of the output and of the log-sum-exp."""
    q, k, v, dout = _readable(q), _readable(k), _readable(v), _readable(dout)
    out, lse, dlse = out.contiguous(), lse.contiguous(), dlse.contiguous()
    bias = None if bias is None else bias.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if not q.numel():
        return dq, dk, dv, None if bias is None else torch.zeros_like(bias)
    launch = Launch(q, bias, geometry, scale, _wide(q, k, v, dout, out))
    queries, keys = launch.config("queries"), launch.config("keys")
    saved = (q, k, v, dout, out, lse, dlse)
    if queries.group:
        return dq, dk, dv, run_group(launch, queries, *saved, dq, dk, dv)
    terms = torch.empty(*lse.shape, 2, dtype=torch.float32, device=q.device)
    dbias = run_queries(launch, queries, *saved, terms, dq)
    run_keys(launch, keys, q, k, v, dout, out, terms, dk, dv)
    return dq, dk, dv, dbias


def _partial_sums(launch: Launch, programs: int, rows: int, columns: int) -> tuple[Tensor | None, Tensor | None]:
    """Scratch for the sums over pairs of each program, and the rows of its sums over offsets."""
    if launch.bias is None:
        return None, None
    device = launch.q.device
    pairs = torch.empty(launch.heads * programs, rows, columns, dtype=torch.float32, device=device)
    partial = torch.empty(launch.heads, programs, launch.bias[0].numel(), dtype=torch.float32, device=device)
    return pairs, partial


def _sum_partial(launch: Launch, partial: Tensor | None) -> Tensor | None:
    return None if partial is None else partial.sum(1).to(launch.bias.dtype).view(launch.bias.shape)


def run_group(launch: Launch, config: Config, q, k, v, dout, out, lse, dlse, dq, dk, dv) -> Tensor | None:
    tiling = launch.tiling(config)
    table = launch.tables(config, tiling, config.rows, False)
    slices, images = launch.slices(config, tiling.tiles * launch.heads)
    pairs, partial = _partial_sums(launch, tiling.tiles * slices, config.rows, config.rows)
    differentiate_group[(tiling.tiles, launch.heads, slices)](
        q,
        k,
        v,
        launch.bias,
        table,
        out,
        lse,
        dout,
        dlse,
        dq,
        dk,
        dv,
        pairs,
        partial,
        _strides(q),
        _strides(k),
        _strides(v),
        _strides(dout),
        _strides(out),
        _strides(lse.unsqueeze(-1)),
        packed(tiling.axes),
        launch.batch,
        launch.heads,
        images,
        launch.scale,
        launch.scale * LOG2E.value,
        ROWS=config.rows,
        FOLD=2 * config.warps,
        STORED=table is not None,
        **launch.flags,
        num_warps=config.warps,
        num_stages=config.stages,
        maxnreg=config.registers,
    )
    return _sum_partial(launch, partial)


def run_queries(launch: Launch, config: Config, q, k, v, dout, out, lse, dlse, terms, dq) -> Tensor | None:
    tiling = launch.tiling(config)
    sizes = launch.sizes(config, tiling)
    columns = sizes["COLUMNS"]
    table = launch.tables(config, tiling, columns, False)
    # Each program owns scratch for its sums, so there are only so many, and each takes a run of tiles.
    most = SCRATCH_BYTES // (4 * config.rows * columns) if launch.bias is not None else config.programs
    run = -(-tiling.tiles * launch.heads // max(launch.heads, min(config.programs, most)))
    programs = -(-tiling.tiles // run)
    slices, images = launch.slices(config, programs * launch.heads)
    pairs, partial = _partial_sums(launch, programs * slices, config.rows, columns)
    if config.whole:
        sizes["SHARED"] = k.stride() == v.stride()
    kernel = differentiate_queries if config.whole else differentiate_queries_chunks
    kernel[(programs, launch.heads, slices)](
        q,
        k,
        v,
        launch.bias,
        table,
        out,
        lse,
        dout,
        dlse,
        terms,
        dq,
        pairs,
        partial,
        _strides(q),
        _strides(k),
        _strides(v),
        _strides(dout),
        _strides(out),
        _strides(lse.unsqueeze(-1)),
        packed(tiling.axes),
        tiling.tiles,
        run,
        launch.batch,
        launch.heads,
        images,
        launch.scale,
        launch.scale * LOG2E.value,
        FOLD=2 * config.warps,
        MERGES=launch.bias is not None and run > 1 and tiling.classes > 0,
        STORED=table is not None,
        **sizes,
        **launch.flags,
        num_warps=config.warps,
        num_stages=config.stages,
        maxnreg=config.registers,
    )
    return _sum_partial(launch, partial)


def run_keys(launch: Launch, config: Config, q, k, v, dout, out, terms, dk, dv) -> None:
    tiling = launch.tiling(config, inverse=True)
    sizes = launch.sizes(config, tiling)
    columns = sizes["COLUMNS"]
    table = launch.tables(config, tiling, columns, True)
    slices, images = launch.slices(config, tiling.tiles * launch.heads)
    kernel = differentiate_keys if config.whole else differentiate_keys_chunks
    kernel[(tiling.tiles, launch.heads, slices)](
        q,
        k,
        v,
        launch.bias,
        table,
        terms,
        dout,
        dk,
        dv,
        _strides(q),
        _strides(k),
        _strides(v),
        _strides(dout),
        _strides(out),
        tuple(stride // 2 for stride in _strides(terms)),
        packed(tiling.axes),
        launch.batch,
        launch.heads,
        images,
        launch.scale,
        launch.scale * LOG2E.value,
        STORED=table is not None,
        **sizes,
        **launch.flags,
        num_warps=config.warps,
        num_stages=config.stages,
        maxnreg=config.registers,
    )
