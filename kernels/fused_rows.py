"""Device functions that fused kernels share: rows of channels, and logits in units of log2."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(ptr, offset, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of D channels at element offsets `offset`, padded with zeros to WIDTH."""
    d = tl.arange(0, WIDTH)
    if D == WIDTH:
        return tl.load(ptr + offset[:, None] + d[None, :])
    return tl.load(ptr + offset[:, None] + d[None, :], mask=(d < D)[None, :], other=0.0)


@triton.jit
def store_rows(ptr, offset, rows, valid, D: tl.constexpr, WIDTH: tl.constexpr):
    d = tl.arange(0, WIDTH)
    tl.store(ptr + offset[:, None] + d[None, :], rows.to(ptr.dtype.element_ty), mask=valid[:, None] & (d < D)[None, :])


@triton.jit
def logits(rows, columns, scale, table, PRECISION: tl.constexpr):
    """Logits in log2 units: rows . columns * scale + table."""
    return tl.dot(rows, tl.trans(columns), input_precision=PRECISION) * scale + table
