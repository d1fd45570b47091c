"""From a kind of call to bound kernels: tiles, tables, how the work is shared out, and the launches.

A plan depends on shapes, strides, dtypes and the neighborhood, not on values, so it is made once for each kind of call.
"""

import triton
from torch import Tensor, empty, float32

from ..fused_rows import LOG2E
from ..launch import BoundKernel, spatial_strides
from .fused_backward import differentiate_queries, differentiate_queries_chunks
from .fused_backward_keys import differentiate_group, differentiate_keys, differentiate_keys_chunks
from .fused_bias import sum_partial
from .fused_config import Config, choose, cut_block
from .fused_forward import attend_block, attend_chunks
from .fused_tiles import build_tables
from .geometry import Geometry
from .tiling import Tiling, packed, tile_map

TABLE_BYTES = 1 << 26
SCRATCH_BYTES = 1 << 26
SMALL_TABLE = 64  # entries of a bias up to which its gradient needs an exact delta


def _wide(*tensors: Tensor) -> bool:
    """Whether offsets within an image may not fit in 32 bits."""
    return any(
        sum((n - 1) * abs(s) for n, s in zip(x.shape[1:], x.stride()[1:], strict=True)) >= 1 << 31 for x in tensors
    )


class Table:
    """The tables of logits of a tiling, built anew for each call since the bias changes."""

    def __init__(self, call: "Call", config: Config, tiling: Tiling, columns: int, inverse: bool):
        heads = call.heads if call.entries else 1
        self.shape = (heads, tiling.classes, config.rows, columns)
        chunk = min(64, columns & -columns)
        self.kernel = BoundKernel(
            build_tables,
            (tiling.classes, columns // chunk, heads),
            (packed(tiling.axes),),
            {
                "ROWS": config.rows,
                "COLUMNS": columns,
                "CHUNK": chunk,
                "INVERSE": inverse,
                "HAS_BIAS": call.entries > 0,
                "PLAIN": call.flags["PLAIN"],
            },
        )

    def __call__(self, like: Tensor, bias: Tensor | None) -> Tensor:
        table = empty(self.shape, dtype=float32, device=like.device)
        self.kernel(table, bias)
        return table


class Call:
    """A kind of call: shapes, strides, compile-time flags, and how its work is cut."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float, *more: Tensor
    ):
        self.geometry, self.scale, self.dtype = geometry, scale, q.dtype
        self.entries = 0 if bias is None else bias[0].numel()
        self.batch, self.heads, self.width = q.shape[0], q.shape[-2], q.shape[-1]
        self.strides = [spatial_strides(x) for x in (q, k, v)]
        self.shared = k.stride() == v.stride()
        self.flags = {
            "D": self.width,
            "WIDTH": max(16, triton.next_power_of_2(self.width)),
            "HAS_BIAS": self.entries > 0,
            "PLAIN": all(axis.stride == axis.dilation == 1 and not axis.causal for axis in geometry.axes),
            "WIDE": _wide(q, k, v, *more),
            "PRECISION": "ieee",
        }

    def config(self, kernel: str) -> Config:
        return choose(kernel, self.geometry, self.dtype, self.width, self.entries > 0, self.batch)

    def tiling(self, config: Config, inverse: bool = False) -> Tiling:
        tiling = tile_map(self.geometry, config.tile, inverse)
        if config.group:
            axes = tuple(axis._replace(extent=axis.tile) for axis in tiling.axes)
            tiling = tiling._replace(axes=axes)
        return tiling

    def share(self, config: Config, tiling: Tiling) -> tuple[int, int, int]:
        """Return the tiles of a piece, slices of the batch and images in each, for about `config.programs` programs."""
        programs = tiling.tiles * self.heads
        images = -(-self.batch // max(1, min(self.batch, config.programs // programs)))
        run = max(1, programs // config.programs) if config.runs and tiling.classes else 1
        return run, -(-self.batch // images), images

    def sizes(self, config: Config, tiling: Tiling) -> dict:
        """Return the compile-time sizes of a kernel."""
        if not config.whole:
            columns = -(-tiling.block // config.chunk) * config.chunk
            return {"ROWS": config.rows, "CHUNK": config.chunk, "COLUMNS": columns}
        chunks = cut_block(tiling.block, config.chunk)
        starts = tuple(sum(chunks[:c]) for c in range(len(chunks)))
        sizes = {"ROWS": config.rows, "CHUNKS": chunks, "STARTS": starts, "COLUMNS": sum(chunks)}
        return {**sizes, "HELD": config.held}

    def table(self, config: Config, tiling: Tiling, columns: int, inverse: bool = False) -> Table | None:
        """Return the builder of the tables of a tiling, or None where each program builds its own."""
        size = (self.heads if self.entries else 1) * tiling.classes * config.rows * columns
        if not config.stored or size == 0 or 4 * size > TABLE_BYTES:
            return None
        return Table(self, config, tiling, columns, inverse)


def _options(config: Config) -> dict:
    return {"num_warps": config.warps, "num_stages": config.stages, "maxnreg": config.registers}


class ForwardPlan:
    """out and lse of a kind of call."""

    def __init__(self, call: Call, out: Tensor, lse: Tensor):
        config = call.config("forward")
        tiling = call.tiling(config)
        sizes = call.sizes(config, tiling)
        self.table = call.table(config, tiling, sizes["COLUMNS"])
        run, slices, images = call.share(config, tiling)
        if config.whole:
            sizes["SHARED"] = call.shared
        strides = (*call.strides, spatial_strides(out), spatial_strides(lse.unsqueeze(-1)))
        self.kernel = BoundKernel(
            attend_block if config.whole else attend_chunks,
            (tiling.pieces(run), call.heads, slices),
            (*strides, packed(tiling.axes), run, call.batch, images, call.scale * LOG2E.value),
            {"STORED": self.table is not None, "RUNS": run > 1, **sizes, **call.flags},
            **_options(config),
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor) -> None:
        self.kernel(q, k, v, bias, self.table and self.table(q, bias), out, lse)


class Sums:
    """The sums for dbias: scratch for those over pairs, and one row of sums over offsets from each program."""

    def __init__(self, call: Call, programs: int, rows: int, columns: int):
        entries = call.entries
        self.pairs = (call.heads * programs, rows, columns)
        self.partial = (call.heads, programs, entries)
        self.kernel = BoundKernel(
            sum_partial,
            (-(-entries // 16), call.heads, 1),
            (programs, entries),
            {"ROWS": 256, "COLUMNS": 16},
            num_warps=4,
        )

    def scratch(self, like: Tensor) -> list[Tensor]:
        return [empty(shape, dtype=float32, device=like.device) for shape in (self.pairs, self.partial)]


class BackwardPlan:
    """dq, dk, dv and dbias of a kind of call; `gradient` is any of the first three."""

    def __init__(self, call: Call, dout: Tensor, out: Tensor, lse: Tensor, gradient: Tensor):
        self.call = call
        ends = (spatial_strides(gradient), spatial_strides(lse.unsqueeze(-1)))
        self.strides = (*call.strides, spatial_strides(dout), spatial_strides(out), *ends)
        self.keys_strides = (*call.strides, spatial_strides(dout), *ends)
        self.scales = (call.scale, call.scale * LOG2E.value)
        queries, keys = call.config("queries"), call.config("keys")
        self.group = queries.group
        self.sums = None
        if queries.group:
            self._plan_group(queries)
        else:
            self._plan_queries(queries)
            self._plan_keys(keys)

    def _plan_group(self, config: Config) -> None:
        call, tiling = self.call, self.call.tiling(config)
        self.table = call.table(config, tiling, config.rows)
        _, slices, images = call.share(config, tiling)
        if call.entries:
            self.sums = Sums(call, tiling.tiles * slices, config.rows, config.rows)
        sizes = {"ROWS": config.rows, "FOLD": 2 * config.warps, "STORED": self.table is not None}
        self.kernel = BoundKernel(
            differentiate_group,
            (tiling.tiles, call.heads, slices),
            (*self.keys_strides, packed(tiling.axes), call.batch, images, *self.scales),
            {**sizes, **call.flags},
            **_options(config),
        )

    def _plan_queries(self, config: Config) -> None:
        call, tiling = self.call, self.call.tiling(config)
        sizes = call.sizes(config, tiling)
        self.table = call.table(config, tiling, sizes["COLUMNS"])
        run, slices, images = call.share(config, tiling)
        pieces = tiling.pieces(run)
        # Each program owns scratch for its sums, so there are only so many, and each may take several pieces.
        most = SCRATCH_BYTES // (4 * config.rows * sizes["COLUMNS"] * slices)
        each = 1 if not call.entries else -(-pieces * call.heads // max(call.heads, most))
        programs = -(-pieces // each)
        if call.entries:
            self.sums = Sums(call, programs * slices, config.rows, sizes["COLUMNS"])
        sizes["SHARED" if config.whole else "ITEMS"] = call.shared if config.whole else config.items
        self.kernel = BoundKernel(
            differentiate_queries if config.whole else differentiate_queries_chunks,
            (programs, call.heads, slices),
            (*self.strides, packed(tiling.axes), run, pieces, each, call.batch, images, *self.scales),
            {
                "FOLD": 2 * config.warps,
                "EXACT": call.dtype != float32 and 0 < call.entries <= SMALL_TABLE,
                "STORED": self.table is not None,
                "RUNS": run > 1,
                **sizes,
                **call.flags,
            },
            **_options(config),
        )

    def _plan_keys(self, config: Config) -> None:
        call, tiling = self.call, self.call.tiling(config, inverse=True)
        sizes = call.sizes(config, tiling)
        self.keys_table = call.table(config, tiling, sizes["COLUMNS"], inverse=True)
        run, slices, images = call.share(config, tiling)
        self.keys_kernel = BoundKernel(
            differentiate_keys if config.whole else differentiate_keys_chunks,
            (tiling.pieces(run), call.heads, slices),
            (*self.keys_strides, packed(tiling.axes), run, call.batch, images, *self.scales),
            {"STORED": self.keys_table is not None, "RUNS": run > 1, **sizes, **call.flags},
            **_options(config),
        )

    def __call__(self, q, k, v, bias, out, lse, dout, dlse, dq, dk, dv, dbias) -> None:
        pairs, partial = self.sums.scratch(q) if self.sums else (None, None)
        table = self.table and self.table(q, bias)
        if self.group:
            self.kernel(q, k, v, bias, table, lse, dout, dlse, dq, dk, dv, pairs, partial)
        else:
            terms = empty((*lse.shape, 2), dtype=float32, device=q.device)
            self.kernel(q, k, v, bias, table, out, lse, dout, dlse, terms, dq, pairs, partial)
            self.keys_kernel(q, k, v, bias, self.keys_table and self.keys_table(q, bias), terms, dout, dk, dv)
        if self.sums:
            self.sums.kernel(partial, dbias)
