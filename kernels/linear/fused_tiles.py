"""Tiles of fused linear attention: some tokens of a group of neighbouring heads, [BLOCK, GROUP, WIDTH], and its state.

Products take a group as one row of GROUP * WIDTH channels; between heads, off the diagonal, the state is zero. Heads
beyond the last one, and channels beyond D, are zero.
"""

import triton
import triton.language as tl

from ..fused_rows import narrowed, product, start_of


@triton.jit
def heads_of(group, GROUP: tl.constexpr):
    """Numbers of a group's heads."""
    return group * GROUP + tl.arange(0, GROUP)


@triton.jit
def within(n, last, EVEN: tl.constexpr):
    """Which tokens there are: with EVEN, which says that blocks are full, masks cost nothing."""
    if EVEN:
        return tl.full(n.shape, 1, tl.int1)
    else:
        return n < last


@triton.jit
def entries(ptr, strides, sample, n, group, GROUP: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Pointers to tokens `n` of a group of heads, [n, GROUP, WIDTH]."""
    head = tl.arange(0, GROUP)
    rows = (n.to(tl.int64) if WIDE else n) * strides[1]
    columns = (head.to(tl.int64) if WIDE else head)[:, None] * strides[2] + tl.arange(0, WIDTH)[None, :]
    return start_of(ptr, strides, sample, group * GROUP) + rows[:, None, None] + columns[None, :, :]


@triton.jit
def inside(valid, group, heads, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    channels = (heads_of(group, GROUP) < heads)[:, None] & (tl.arange(0, WIDTH) < D)[None, :]
    return valid[:, None, None] & channels[None, :, :]


@triton.jit
def load_tile(
    ptr,
    strides,
    sample,
    n,
    valid,
    group,
    heads,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    at = entries(ptr, strides, sample, n, group, GROUP, WIDTH, WIDE)
    return tl.load(at, mask=inside(valid, group, heads, GROUP, D, WIDTH), other=0.0)


@triton.jit
def load_row(
    ptr,
    strides,
    sample,
    n,
    valid,
    group,
    heads,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """What `load_tile` gives, but a thread holds few channels of several tokens, however many heads there are."""
    c = tl.arange(0, GROUP * WIDTH)
    head = group * GROUP + c // WIDTH
    rows = (n.to(tl.int64) if WIDE else n) * strides[1]
    columns = (head.to(tl.int64) if WIDE else head) * strides[2] + c % WIDTH
    at = ptr + sample.to(tl.int64) * strides[0] + rows[:, None] + columns[None, :]
    known = valid[:, None] & ((head < heads) & (c % WIDTH < D))[None, :]
    return tl.reshape(tl.load(at, mask=known, other=0.0), (n.shape[0], GROUP, WIDTH))


@triton.jit
def store_tile(
    ptr,
    strides,
    sample,
    n,
    valid,
    group,
    heads,
    x,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    at = entries(ptr, strides, sample, n, group, GROUP, WIDTH, WIDE)
    tl.store(at, narrowed(x, ptr), mask=inside(valid, group, heads, GROUP, D, WIDTH))


@triton.jit
def numbers(ptr, sample, tokens, n, valid, group, heads, GROUP: tl.constexpr):
    """Pointers to numbers of tokens and heads, of [B, tokens, heads], and where they lie inside, both [n, GROUP]."""
    head = heads_of(group, GROUP)
    at = ptr + (sample.to(tl.int64) * tokens + n)[:, None] * heads + head[None, :]
    return at, valid[:, None] & (head < heads)[None, :]


@triton.jit
def rows_product(x, matrix, GROUP: tl.constexpr, WIDTH: tl.constexpr, PRODUCT: tl.constexpr):
    """A tile's rows times a matrix, as a tile of heads of WIDTH channels."""
    rows = tl.reshape(x, (x.shape[0], x.shape[1] * x.shape[2]))
    return tl.reshape(product(rows, matrix, PRODUCT), (x.shape[0], GROUP, WIDTH))


@triton.jit
def pairs_product(x, y, PRODUCT: tl.constexpr):
    """Sum over tokens of a row of one tile times a row of another."""
    rows = tl.reshape(x, (x.shape[0], x.shape[1] * x.shape[2]))
    columns = tl.reshape(y, (y.shape[0], y.shape[1] * y.shape[2]))
    return product(tl.trans(rows), columns, PRODUCT)


@triton.jit
def spread(x, MAP: tl.constexpr, PRODUCT: tl.constexpr):
    """A tile in float32, held by threads as they hold the results of products, or as it was loaded.

    What a loaded tile and a product meet in, compilers otherwise compute once for each way of holding tiles. Products
    with one are exact but spread what is not finite over a token's heads; so do the norms of the focused map.
    """
    if MAP == "focused" and PRODUCT != "ieee":
        c = tl.arange(0, x.shape[1] * x.shape[2])
        one = (c[:, None] == c[None, :]).to(x.dtype)
        rows = tl.dot(tl.reshape(x, (x.shape[0], x.shape[1] * x.shape[2])), one)
        return tl.reshape(rows, x.shape)
    else:
        return x.to(tl.float32)


@triton.jit
def pairs_at(ptr, sample, group, heads, GROUP: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr):
    """Pointers to S of a group, [GROUP * WIDTH, GROUP * VALUE_WIDTH], and where on the diagonal of heads they lie."""
    d = tl.arange(0, GROUP * WIDTH)
    e = tl.arange(0, GROUP * VALUE_WIDTH)
    head = group * GROUP + d // WIDTH
    start = (sample.to(tl.int64) * heads + head) * (WIDTH * VALUE_WIDTH + WIDTH + VALUE_WIDTH)
    at = ptr + (start + d % WIDTH * VALUE_WIDTH)[:, None] + (e % VALUE_WIDTH)[None, :]
    return at, ((d // WIDTH)[:, None] == (e // VALUE_WIDTH)[None, :]) & (head < heads)[:, None]


@triton.jit
def vectors_at(
    ptr, sample, group, heads, FIRST: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, ENTRIES: tl.constexpr
):
    """Pointers to WIDTH entries of each head's state from entry FIRST on, [GROUP, WIDTH], and where there are heads."""
    head = heads_of(group, GROUP)
    start = (sample.to(tl.int64) * heads + head) * ENTRIES + FIRST
    return ptr + start[:, None] + tl.arange(0, WIDTH)[None, :], (head < heads)[:, None]


@triton.jit
def load_state(ptr, sample, group, heads, GROUP: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr):
    """S, s and m of a group's heads."""
    PAIRS: tl.constexpr = WIDTH * VALUE_WIDTH
    ENTRIES: tl.constexpr = PAIRS + WIDTH + VALUE_WIDTH
    at, mask = pairs_at(ptr, sample, group, heads, GROUP, WIDTH, VALUE_WIDTH)
    pairs = tl.load(at, mask=mask, other=0.0)
    at, mask = vectors_at(ptr, sample, group, heads, PAIRS, GROUP, WIDTH, ENTRIES)
    keys = tl.load(at, mask=mask, other=0.0)
    at, mask = vectors_at(ptr, sample, group, heads, PAIRS + WIDTH, GROUP, VALUE_WIDTH, ENTRIES)
    return pairs, keys, tl.load(at, mask=mask, other=0.0)


@triton.jit
def store_state(
    ptr,
    sample,
    group,
    heads,
    pairs,
    keys,
    values,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
):
    PAIRS: tl.constexpr = WIDTH * VALUE_WIDTH
    ENTRIES: tl.constexpr = PAIRS + WIDTH + VALUE_WIDTH
    at, mask = pairs_at(ptr, sample, group, heads, GROUP, WIDTH, VALUE_WIDTH)
    tl.store(at, pairs, mask=mask)
    at, mask = vectors_at(ptr, sample, group, heads, PAIRS, GROUP, WIDTH, ENTRIES)
    tl.store(at, keys, mask=mask)
    at, mask = vectors_at(ptr, sample, group, heads, PAIRS + WIDTH, GROUP, VALUE_WIDTH, ENTRIES)
    tl.store(at, values, mask=mask)
