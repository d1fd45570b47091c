"""From a kind of call to bound kernels: tiles or chunks, how the work is shared out, and the launches."""

import math
from collections.abc import Sequence

import triton
from torch import Tensor, empty, float32

from ..fused_rows import LOG2E
from ..launch import BoundKernel, spatial_strides, wide
from .fused_chunks import attend_rows, differentiate_columns, differentiate_rows
from .fused_kernels import attend_windows, differentiate_windows

PROGRAMS = 2112  # to aim for where a program can take several tiles: 16 for each of 132 multiprocessors
SCRATCH_BYTES = 1 << 26


class Call:
    """A kind of call: shapes, compile-time flags, and how its work is cut."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        window: Sequence[int],
        scale: float,
    ):
        self.scale, self.heads, self.biased = scale, q.shape[-2], bias is not None
        self.strides = [spatial_strides(x) for x in (q, k, v)]
        self.shared = len(set(self.strides)) == 1
        missing = 3 - len(window)
        self.counts = (*(1,) * missing, *(n // w for n, w in zip(q.shape[1:], window, strict=False)))
        self.tokens = math.prod(window)
        self.windows = q.shape[0] * math.prod(self.counts)
        self.widths = [max(16, triton.next_power_of_2(x.shape[-1])) for x in (q, v)]
        self.flags = {
            "WINDOW": (*(1,) * missing, *window),
            "TOKENS": self.tokens,
            "D": q.shape[-1],
            "WIDTH": self.widths[0],
            "E": v.shape[-1],
            "VALUE_WIDTH": self.widths[1],
            "HAS_BIAS": self.biased,
            "MASK": "none" if mask is None else "additive" if mask.is_floating_point() else "boolean",
            "WIDE": wide(q, k, v),
            "PRECISION": "ieee",
        }
        self.single = q.dtype == float32

    def rows(self, most: int) -> int | None:
        """Return the rows of tiles that whole windows fit in, or None where a window has more than `most` tokens."""
        return None if self.tokens > most else max(32, triton.next_power_of_2(self.tokens))

    def tiles(self, rows: int) -> tuple[int, int, int]:
        """Return how many tiles there are, how many a program takes, and the number of programs for each head."""
        tiles = -(-self.windows // (rows // self.tokens))
        each = -(-tiles * self.heads // PROGRAMS)
        return tiles, each, -(-tiles // each)

    def chunk(self) -> int:
        return 64 if max(self.widths) <= 64 and not self.single else 32


class ForwardPlan:
    """out and lse of a kind of call."""

    def __init__(self, call: Call, out: Tensor, lse: Tensor):
        strides = (*call.strides, spatial_strides(out), spatial_strides(lse.unsqueeze(-1)))
        scale = call.scale * LOG2E.value
        rows = call.rows(128 if max(call.widths) <= 64 and not call.single else 64)
        if rows:
            tiles, each, programs = call.tiles(rows)
            self.kernel = BoundKernel(
                attend_windows,
                (programs, call.heads, 1),
                (*strides, call.counts, call.windows, tiles, each, scale),
                {"ROWS": rows, "SHARED": call.shared, **call.flags},
                num_warps=max(2, rows // 16),
                num_stages=2,
            )
        else:
            chunk = call.chunk()
            self.kernel = BoundKernel(
                attend_rows,
                (call.windows, call.heads, -(-call.tokens // chunk)),
                (*strides, call.counts, scale),
                {"ROWS": chunk, "CHUNK": chunk, **call.flags},
                num_warps=4,
                num_stages=2,
            )

    def __call__(self, q, k, v, bias, mask, out, lse) -> None:
        self.kernel(q, k, v, bias, mask, out, lse)


class BackwardPlan:
    """dq, dk, dv and dbias of a kind of call."""

    def __init__(
        self, call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
    ):
        self.call = call
        gradients = [spatial_strides(x) for x in (dq, dk, dv)]
        ends = (spatial_strides(dout), spatial_strides(out), spatial_strides(lse.unsqueeze(-1)))
        scales = (call.scale, call.scale * LOG2E.value)
        self.rows = call.rows(64)
        if self.rows:
            self._plan_tiles((*call.strides, ends[0], ends[2], *gradients), scales)
        else:
            self._plan_chunks(
                (*call.strides, *ends, gradients[0]), (*call.strides, ends[0], ends[2], *gradients[1:]), scales
            )

    def _plan_tiles(self, strides: Sequence, scales: Sequence[float]) -> None:
        call, rows = self.call, self.rows
        tiles, each, programs = call.tiles(rows)
        self.partial = (call.heads, programs, rows, rows)
        self.kernel = BoundKernel(
            differentiate_windows,
            (programs, call.heads, 1),
            (*strides, call.counts, call.windows, tiles, each, *scales),
            {"ROWS": rows, "SHARED": call.shared, **call.flags},
            num_warps=max(2, rows // 16) * (2 if max(call.widths) > 64 else 1),
            num_stages=2,
        )

    def _plan_chunks(self, strides: Sequence, columns_strides: Sequence, scales: Sequence[float]) -> None:
        call, chunk = self.call, self.call.chunk()
        chunks = -(-call.tokens // chunk)
        programs = call.windows
        if call.biased:
            programs = min(programs, max(1, SCRATCH_BYTES // (4 * call.heads * (chunks * chunk) ** 2)))
        each = -(-call.windows // programs)
        programs = -(-call.windows // each)
        self.partial = (call.heads, programs, chunks * chunk, chunks * chunk)
        options = {"num_warps": 4, "num_stages": 2}
        sizes = {"ROWS": chunk, "CHUNK": chunk, **call.flags}
        self.kernel = BoundKernel(
            differentiate_rows,
            (programs, call.heads, chunks),
            (*strides, call.counts, call.windows, each, *scales),
            {**sizes, "COLUMNS": chunks * chunk},
            **options,
        )
        self.columns_kernel = BoundKernel(
            differentiate_columns,
            (call.windows, call.heads, chunks),
            (*columns_strides, call.counts, *scales),
            sizes,
            **options,
        )

    def __call__(self, q, k, v, bias, mask, out, lse, dout, dlse, dq, dk, dv) -> Tensor | None:
        """Return the gradient of the bias in float32."""
        call = self.call
        partial = empty(self.partial, dtype=float32, device=q.device) if call.biased else None
        if self.rows:
            self.kernel(q, k, v, bias, mask, lse, dout, dlse, dq, dk, dv, partial)
        else:
            terms = empty((*lse.shape, 2), dtype=float32, device=q.device)
            self.kernel(q, k, v, bias, mask, out, lse, dout, dlse, terms, dq, partial)
            self.columns_kernel(q, k, v, bias, mask, terms, dout, dk, dv)
        if partial is None:
            return None
        fit = max(1, (self.rows or 0) // call.tokens)
        sums = partial.sum(1)[:, : fit * call.tokens, : fit * call.tokens]
        return sums.unflatten(2, (fit, -1)).unflatten(1, (fit, -1)).diagonal(dim1=1, dim2=3).sum(-1)
