"""Device functions of fused window attention: where the tokens of windows lie, and what the mask says of them.

Maps have three axes z, y, x, the first ones of extent 1 where there are fewer. Windows are counted row-major over all
maps of the batch, places row-major in a window.
"""

import triton
import triton.language as tl

from ..fused_rows import LOG2E


@triton.jit
def places(window, place, counts, WINDOW: tl.constexpr):
    """Image and z, y, x of a place in a window."""
    x = window % counts[2] * WINDOW[2] + place % WINDOW[2]
    window = window // counts[2]
    y = window % counts[1] * WINDOW[1] + place // WINDOW[2] % WINDOW[1]
    window = window // counts[1]
    z = window % counts[0] * WINDOW[0] + place // (WINDOW[1] * WINDOW[2])
    return window // counts[0], z, y, x


@triton.jit
def offsets(spot, head, strides, WIDE: tl.constexpr):
    """Element offsets of a head's tokens; `strides` are those of batch, z, y, x, heads."""
    image, z, y, x = spot
    if WIDE:
        image = image.to(tl.int64)
        z = z.to(tl.int64)
        y = y.to(tl.int64)
        x = x.to(tl.int64)
        head = head.to(tl.int64)
    return image * strides[0] + z * strides[1] + y * strides[2] + x * strides[3] + head * strides[4]


@triton.jit
def masked(
    table, mask_ptr, window, counts, rows, columns, BY_ROW: tl.constexpr, TOKENS: tl.constexpr, MASK: tl.constexpr
):
    """A table of logits with the mask, [windows of a map, TOKENS, TOKENS], between queries `rows` and keys `columns`.

    `window` is that of each row, BY_ROW, or one for all. MASK is "none", "boolean" (a byte each) or "additive". What is
    loaded must not depend on a product: Triton 3.6 cannot pipeline such a loop.
    """
    if MASK != "none":
        start = (window % (counts[0] * counts[1] * counts[2])).to(tl.int64) * (TOKENS * TOKENS)
        if BY_ROW:
            start = start[:, None]
        at = mask_ptr + start + rows[:, None] * TOKENS + columns[None, :]
        seen = table > float("-inf")
        if MASK == "boolean":
            table = tl.where(tl.load(at, mask=seen, other=0) != 0, table, float("-inf"))
        else:
            table += tl.load(at, mask=seen, other=0.0).to(tl.float32) * LOG2E
    return table
