"""Device functions that fused kernels share: rows of channels, and logits in units of log2."""

import torch
import triton
import triton.language as tl

PRODUCTS = {torch.bfloat16: "bfloat16", torch.float16: "tf32", torch.float32: "ieee"}
"""How `product` multiplies for tensors of a dtype."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
HALF_MAX = tl.constexpr(65504.0)


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


@triton.jit
def product(a, b, PRODUCT: tl.constexpr):
    """Matrix product in bfloat16 or, with "tf32" or "ieee", of float32; float16 has too little range for features."""
    if PRODUCT == "bfloat16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRODUCT)


@triton.jit
def narrowed(x, ptr):
    """Rows in the dtype of a pointer; what float16 cannot hold becomes its largest number."""
    if ptr.dtype.element_ty == tl.float16:
        x = tl.minimum(tl.maximum(x, -HALF_MAX), HALF_MAX)
    return x.to(ptr.dtype.element_ty)


@triton.jit
def load_tokens(ptr, at, valid, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of D channels, zero in WIDTH's padding and where there is no token."""
    d = tl.arange(0, WIDTH)
    inside = valid[:, None] & (d < D)[None, :]
    return tl.load(ptr + at[:, None] + d[None, :], mask=inside, other=0.0)


@triton.jit
def store_tokens(ptr, at, rows, valid, D: tl.constexpr, WIDTH: tl.constexpr):
    d = tl.arange(0, WIDTH)
    tl.store(ptr + at[:, None] + d[None, :], narrowed(rows, ptr), mask=valid[:, None] & (d < D)[None, :])


@triton.jit
def row_offsets(n, strides, WIDE: tl.constexpr):
    """Element offsets of tokens of a sample; `strides` are those of batch, tokens, heads."""
    return (n.to(tl.int64) if WIDE else n) * strides[1]


@triton.jit
def start_of(ptr, strides, sample, head):
    # A loop's counter is a number in the interpreter; the sum is a tensor everywhere.
    return ptr + sample.to(tl.int64) * strides[0] + (tl.zeros([], tl.int64) + head) * strides[2]
