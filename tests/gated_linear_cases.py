"""Random calls of gated linear attention, and gated linear attention token by token."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from saccade.kernels.gated_linear import gated_linear_attention

SCALE = 0.7


@dataclass(frozen=True)
class Case:
    """A call.

    Args:
        both: whether there is a scan from last to first too.
        decay: what logarithms of gates are drawn from, 0 to minus this.
        resets: whether some gates are zero, their logarithms minus infinity.
    """

    grid: tuple[int, ...]
    both: bool = True
    decay: float = 0.1
    resets: bool = False
    batch: int = 2
    heads: int = 2
    dim: int = 4
    value_dim: int = 3
    seed: int = 0

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return the tensors of the call by name, all asking for gradients; q, k and v are packed."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(dim: int) -> Tensor:
            shape = (self.batch, *self.grid, self.heads, dim)
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        split = (self.dim, self.dim, self.value_dim)
        found = dict(zip("qkv", draw(sum(split)).split(split, -1), strict=True))
        for name in ("log_gate", "reverse_log_gate")[: 1 + self.both]:
            found[name] = -self.decay * torch.rand(found["q"].shape, generator=generator, dtype=torch.float64)
            if self.resets:
                found[name][draw(self.dim) > 1] = float("-inf")
        return {name: x.to(dtype).requires_grad_() for name, x in found.items()}

    def ours(self, **tensors: Tensor) -> Tensor:
        """Call the operator."""
        return gated_linear_attention(**tensors, scale=SCALE)

    def truth(self, **tensors: Tensor) -> Tensor:
        """Compute the same token by token."""
        out = scanned(**{name: x for name, x in tensors.items() if name != "reverse_log_gate"})
        if self.both:
            flipped = {name: tensors[name].flatten(1, -3).flip(1) for name in ("q", "k", "v", "reverse_log_gate")}
            flipped["log_gate"] = flipped.pop("reverse_log_gate")
            out = (out + scanned(**flipped).flip(1).view_as(out)) / 2
        return out

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.grid))}{'-both' * self.both}-{self.decay}{'-resets' * self.resets}"


def scanned(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor) -> Tensor:
    """Scan the tokens from first to last, as the recurrence reads."""
    queries, keys, values, gates = (x.flatten(1, -3) for x in (q, k, v, log_gate.exp()))
    state, outs = 0, []
    for token in range(queries.shape[1]):
        state = gates[:, token, :, :, None] * state + keys[:, token, :, :, None] * values[:, token, :, None]
        outs.append((SCALE * queries[:, token, :, :, None] * state).sum(-2))
    return torch.stack(outs, 1).view(v.shape)


@st.composite
def cases(draw) -> Case:
    """Draw a case: gates from none to where floating point numbers end, tokens from one to several chunks."""
    grid = draw(st.one_of(st.tuples(st.integers(1, 100)), st.tuples(st.integers(1, 9), st.integers(1, 9))))
    return Case(
        grid,
        draw(st.booleans()),
        draw(st.sampled_from([0.0, 0.05, 2.0, 90.0, 5000.0])),
        draw(st.booleans()),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
        draw(st.integers(0, 999)),
    )
