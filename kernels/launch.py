"""Launching Triton kernels: what does not change from call to call is bound once."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver

# Versions whose compiled kernels are known to take the arguments that `BoundKernel` hands them.
DIRECT = triton.__version__.rsplit(".", 1)[0] in ("3.6", "3.7")


DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_PLANS = 4096


def why_not(x: Tensor) -> str | None:
    """Return why Triton kernels cannot serve calls on tensors like `x`, or None when they can."""
    if x.device.type != "cuda" and not knobs.runtime.interpret:
        return f"needs CUDA tensors, got {x.device.type}"
    if x.dtype == torch.bfloat16 and knobs.runtime.interpret:
        return "Triton's interpreter has no bfloat16 products"
    if x.dtype not in DTYPES:
        return f"needs float16, bfloat16 or float32, got {x.dtype}"
    return None


def readable(x: Tensor) -> Tensor:
    """Return a tensor whose last axis lies in order: `x` itself if it can be."""
    return x if x.stride(-1) == 1 else x.contiguous()


def wide(*tensors: Tensor) -> bool:
    """Return whether offsets within one of the tensors may not fit in 32 bits."""
    return any(sum((n - 1) * abs(s) for n, s in zip(x.shape, x.stride(), strict=True)) >= 1 << 31 for x in tensors)


def spatial_strides(x: Tensor) -> tuple[int, ...]:
    """Return the strides of [B, *spatial, heads, D] as those of [B, z, y, x, heads], 0 along axes that are missing."""
    strides = x.stride()
    return (strides[0], *(0,) * (6 - x.dim()), *strides[1:-1])


def token_strides(x: Tensor) -> tuple[int, int, int]:
    """Return the strides of batch, tokens and heads of [B, N, heads, D]."""
    return x.stride()[:3]


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function launch on the device of its first tensor, whichever device is current."""

    @wraps(function)
    def launch(*arguments: Any) -> Any:
        x = next(x for x in arguments if isinstance(x, Tensor))
        if x.is_cuda and x.get_device() != torch.cuda.current_device():
            with torch.cuda.device(x.device):
                return function(*arguments)
        return function(*arguments)

    return launch


def split(tokens: int, block: int, others: int, programs: int) -> tuple[int, int]:
    """Return the number of splits of `tokens` and the tokens of each, whole blocks, for about that many programs.

    Args:
        others: programs that there are for each split.
    """
    blocks = -(-tokens // block)
    splits = max(1, min(blocks, programs // max(1, others)))
    each = -(-blocks // splits) * block
    return -(-tokens // each), each


class Plans:
    """The plans of an operator, each made at the first call of its kind."""

    def __init__(self):
        self.made: dict[tuple, Any] = {}

    def __call__(self, make: Callable[[], Any], settings: tuple, *tensors: Tensor | None) -> Any:
        """Return the plan for such settings and tensors of such shapes, strides, dtypes, device and alignment.

        Triton compiles another variant for pointers that are no multiples of 16.
        """
        kinds = (x if x is None else (x.shape, x.stride(), x.dtype, x.data_ptr() % 16 == 0) for x in tensors)
        key = (settings, tensors[0].get_device(), *kinds)
        plan = self.made.get(key)
        if plan is None:
            if len(self.made) >= MOST_PLANS:
                self.made.clear()
            plan = self.made[key] = make()
        return plan


class BoundKernel:
    """A Triton kernel with its grid and all its arguments but the tensors, which come first.

    Triton looks at every argument of every launch to find the variant to run, which takes several times as long as the
    launch. Here the first launch does that; later ones go straight to the variant. It is the caller's business to keep
    one `BoundKernel` for each kind of call: device, dtypes, and which pointers are multiples of 16.

    Args:
        kernel: the function, decorated by `triton.jit`.
        grid: three numbers of programs.
        arguments: the positional arguments after the tensors.
        constants: the compile-time arguments, last in the kernel's signature.
        options: Triton's own, such as num_warps.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        arguments: Sequence[Any],
        constants: dict[str, Any],
        **options: Any,
    ):
        self.kernel, self.grid, self.arguments = kernel, grid, tuple(arguments)
        self.keywords = {**constants, **options}
        order = [name for name in kernel.arg_names if name in constants]
        self.tail = (*self.arguments, *(constants[name] for name in order))
        self.compiled: Any = None

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch on the current stream of the current device; a tensor may be None where the kernel allows it."""
        compiled = self.compiled
        if compiled is None or knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls:
            launched = self.kernel[self.grid](*tensors, *self.arguments, **self.keywords)
            if DIRECT:
                self.compiled = launched  # None in the interpreter
            return
        active = driver.active
        compiled.run(
            *self.grid,
            active.get_current_stream(active.get_current_device()),
            compiled.function,
            compiled.packed_metadata,
            None,
            None,
            None,
            *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
            *self.tail,
        )
