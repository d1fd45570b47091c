"""Argument checks of linear attention: one error that names the argument, its value and what would be valid."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..checks import check_parameter, check_tokens
from .feature_maps import FEATURE_MAPS, NORMALIZERS, WITH_MATRIX, WITH_VECTOR, width
from .reference import Form

__all__ = ["check_form", "check_tensors"]


def check_form(form: Form) -> None:
    """Check the names and numbers."""
    for name, value, table in (
        ("query_map", form.query_map, FEATURE_MAPS),
        ("key_map", form.key_map, FEATURE_MAPS),
        ("normalizer", form.normalizer, NORMALIZERS),
    ):
        if value not in table:
            raise ValueError(f"{name}={value!r} is unknown; valid: {', '.join(table)}")
    if not form.power > 0:
        raise ValueError(f"power={form.power} must be more than 0")


def check_tensors(tensors: Sequence[Tensor | None], form: Form) -> None:
    """Check shapes, dtypes and devices of the tensors that `reference.forward` takes, spatial axes not yet joined."""
    q, k, v, key_weight, query_parameter, key_parameter, query_rotary, key_rotary = tensors
    check_tokens(q, k, v)
    if key_weight is not None:
        check_parameter("key_weight", key_weight, k.shape[:-1], q, "q")
    widths = [
        _check_map(f"{side}_parameter", name, parameter, q)
        for side, name, parameter in (
            ("query", form.query_map, query_parameter),
            ("key", form.key_map, key_parameter),
        )
    ]
    if widths[0] != widths[1]:
        raise ValueError(
            f"query_map={form.query_map!r} makes {widths[0]} features and key_map={form.key_map!r} {widths[1]}; valid: "
            "as many of each"
        )
    for name, rotary, tokens in (("query_rotary", query_rotary, q), ("key_rotary", key_rotary, k)):
        if rotary is not None:
            if widths[0] % 2:
                raise ValueError(f"{name} turns pairs of features, and there are {widths[0]}; valid: an even number")
            check_parameter(name, rotary, [2, math.prod(tokens.shape[1:-2]), widths[0]], q, "q")


def _check_map(argument: str, name: str, parameter: Tensor | None, q: Tensor) -> int:
    """Check the tensor of a feature map and return how many features the map makes."""
    heads, channels = q.shape[-2:]
    if parameter is not None:
        if name in WITH_VECTOR:
            check_parameter(argument, parameter, [heads, channels], q, "q")
        elif name not in WITH_MATRIX:
            raise ValueError(f"{argument} is given, but the map {name!r} takes none; valid: None")
        elif parameter.dim() != 3:
            raise ValueError(f"{argument} has shape {list(parameter.shape)}; valid: [heads, D, features]")
        else:
            check_parameter(argument, parameter, [heads, channels, parameter.shape[-1]], q, "q")
    return width(name, channels, None if parameter is None else parameter.shape)
