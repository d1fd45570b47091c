"""Launching Triton kernels: what does not change from call to call is bound once."""

from collections.abc import Sequence
from typing import Any

import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver

# Versions whose compiled kernels are known to take the arguments that `BoundKernel` hands them.
DIRECT = triton.__version__.rsplit(".", 1)[0] in ("3.6", "3.7")


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
