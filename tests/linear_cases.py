"""Random calls of linear attention, and linear attention as a matrix of weights between all queries and keys."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from saccade.kernels.linear import linear_attention
from saccade.kernels.linear.feature_maps import DOUBLING, FEATURE_MAPS, NORMALIZERS, WITH_MATRIX, WITH_VECTOR

SETTINGS = {"mean": True, "scale": 0.7, "power": 2.5, "eps": 0.3}

SIGNED = {"identity", "leaky_relu", "elu", "silu", "unit"}


@dataclass(frozen=True)
class Case:
    """A call: sizes of both maps, the names, and whether there are weights and rotations."""

    grid: tuple[int, ...]
    key_grid: tuple[int, ...]
    query_map: str
    key_map: str
    normalizer: str
    weight: bool = False
    rotary: bool = False
    batch: int = 2
    heads: int = 2
    dim: int = 4
    value_dim: int = 3
    seed: int = 0
    power: float = SETTINGS["power"]

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return the tensors of the call by name, all asking for gradients; q, k and v are packed where they can be."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        if self.grid == self.key_grid and self.value_dim == self.dim:
            q, k, v = draw(self.batch, *self.grid, 3, self.heads, self.dim).unbind(-3)
        else:
            q = draw(self.batch, *self.grid, self.heads, self.dim)
            k = draw(self.batch, *self.key_grid, self.heads, self.dim)
            v = draw(self.batch, *self.key_grid, self.heads, self.value_dim)
        found = {"q": q, "k": k, "v": v}
        if self.weight:
            found["key_weight"] = draw(*k.shape[:-1]).exp()
        width = self.dim
        for side, name in (("query", self.query_map), ("key", self.key_map)):
            if name in WITH_VECTOR:
                found[f"{side}_parameter"] = draw(self.heads, self.dim)
            if name in WITH_MATRIX:
                width = 6
                found[f"{side}_parameter"] = draw(self.heads, self.dim, width)
        if self.rotary:
            width *= 2 if self.key_map in DOUBLING else 1
            for side, x in (("query", q), ("key", k)):
                angles = draw(x[0, ..., 0, 0].numel(), width // 2).repeat_interleave(2, -1)
                found[f"{side}_rotary"] = torch.stack((angles.cos(), angles.sin()))
        return {name: x.to(dtype).requires_grad_() for name, x in found.items()}

    def ours(self, **tensors: Tensor) -> Tensor:
        """Call the operator."""
        q, k, v = (tensors.pop(name) for name in "qkv")
        settings = {**SETTINGS, "power": self.power}
        return linear_attention(q, k, v, self.query_map, self.key_map, self.normalizer, **tensors, **settings)

    def truth(self, **tensors: Tensor) -> Tensor:
        """Compute the same by way of all pairs."""
        q, k, v = (tensors[name].flatten(1, -3) for name in "qkv")
        phi = FEATURE_MAPS[self.query_map](q, tensors.get("query_parameter"), self.power)[0]
        psi = FEATURE_MAPS[self.key_map](k, tensors.get("key_parameter"), self.power)[0]
        psi = psi * SETTINGS["scale"] / k.shape[1]
        if self.weight:
            psi = psi * tensors["key_weight"].flatten(1, -2)[..., None]
        t = torch.einsum("bnhd,bmhd->bnhm", phi, psi).sum(-1, keepdim=True)
        pairs = torch.einsum(
            "bnhd,bmhd->bnhm", turned(phi, tensors.get("query_rotary")), turned(psi, tensors.get("key_rotary"))
        )
        alpha, beta, _ = NORMALIZERS[self.normalizer](t, SETTINGS["eps"])
        weights = (1 if alpha is None else alpha) * pairs + (0 if beta is None else beta) / k.shape[1]
        return torch.einsum("bnhm,bmhe->bnhe", weights, v).unflatten(1, self.grid)

    def __str__(self) -> str:
        parts = (self.query_map, self.key_map, self.normalizer, "weight" * self.weight, "rotary" * self.rotary)
        return "-".join(filter(None, parts))


def turned(x: Tensor, rotary: Tensor | None) -> Tensor:
    """Multiply each pair of features, as a complex number, by its token's."""
    if rotary is None:
        return x
    cos, sin = rotary[:, None, :, None, ::2].unbind()
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


@st.composite
def cases(draw) -> Case:
    """Draw a case of any maps that go together."""
    grids = st.lists(st.integers(1, 5), min_size=1, max_size=2).map(tuple)
    grid = draw(grids)
    query_map = draw(st.sampled_from(sorted(FEATURE_MAPS)))
    alike = [
        name
        for name in sorted(FEATURE_MAPS)
        if all((name in kind) == (query_map in kind) for kind in (DOUBLING, WITH_MATRIX, SIGNED))
    ]
    return Case(
        grid,
        draw(st.one_of(st.just(grid), grids)),
        query_map,
        draw(st.sampled_from(alike)),
        # What divides by a sum of signed numbers may divide by next to nothing.
        draw(
            st.sampled_from(sorted(NORMALIZERS.keys() - ({"divide", "magnitude_aware"} if query_map in SIGNED else {})))
        ),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        2 * draw(st.integers(1, 3)),
        draw(st.integers(1, 6)),
        draw(st.integers(0, 999)),
    )
