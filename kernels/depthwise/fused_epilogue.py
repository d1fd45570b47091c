"""What becomes of the sums of a fused depthwise convolution before they are stored."""

import triton
import triton.language as tl

from ..fused_gelu import gelu, gelu_slope


@triton.constexpr_function
def reads_more(epilogue):
    return epilogue in ("add", "gelu_add", "slope", "add_slope")


@triton.constexpr_function
def reads_inner(epilogue):
    return epilogue == "add_slope"


@triton.jit
def finish(sums, more, inner, EPILOGUE: tl.constexpr):
    """The sums by EPILOGUE: "" as they are, "gelu" through GELU, "slope" the slope of GELU there times `more`.

    "add" and "gelu_add" add `more` at the end; "add_slope" adds it and then multiplies by the slope of GELU at `inner`.
    """
    if EPILOGUE == "add":
        return sums + more.to(tl.float32)
    elif EPILOGUE == "gelu":
        return gelu(sums)
    elif EPILOGUE == "gelu_add":
        return gelu(sums) + more.to(tl.float32)
    elif EPILOGUE == "slope":
        return gelu_slope(sums) * more.to(tl.float32)
    elif EPILOGUE == "add_slope":
        return (sums + more.to(tl.float32)) * gelu_slope(inner.to(tl.float32))
    else:
        return sums
