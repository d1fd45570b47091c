"""Models against the numbers of official ones, reached the way a user reaches official weights: through a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import saccade  # noqa: F401  (registers the models)

from .fill import relative_error

TOLERANCE = 1e-5


def load_file(name: str, path: Path, checkpoint: dict[str, Any], **kwargs: Any) -> nn.Module:
    """Save a checkpoint to `path` and build model `name` from the file."""
    torch.save(checkpoint, path)
    overlay = {"file": str(path)}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


def build_around(name: str, state_of: Callable[[nn.Module], dict[str, Tensor]], **kwargs: Any) -> nn.Module:
    """Build a model around the state dict that `state_of` makes for it, without initialisation, file or copy."""
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    model.load_state_dict(state_of(model), assign=True)
    return model.eval()


def watch(*modules: nn.Module) -> dict[nn.Module, Tensor]:
    """Return a dict that will hold each module's channels-last output as an NCHW map once the model runs."""
    maps: dict[nn.Module, Tensor] = {}
    for module in modules:
        module.register_forward_hook(lambda m, _, out: maps.__setitem__(m, out.permute(0, 3, 1, 2)))
    return maps


def assert_close(value: Tensor, reference: Any, what: str, tolerance: float = TOLERANCE) -> None:
    """Compare by relative error."""
    error = relative_error(value, reference)
    assert error <= tolerance, f"{what} is off by {error:.2e}"


def assert_map(
    value: Tensor,
    reference: dict[str, Any],
    what: str,
    tolerance: float = TOLERANCE,
    probe_tolerance: float | None = None,
    correction: int = 0,
) -> None:
    """Compare an NCHW map with the recorded shape, statistics and probes.

    Args:
        probe_tolerance: for the few values at single pixels; `tolerance` by default.
        correction: 1 where the recorded standard deviation is the unbiased one.
    """
    assert list(value.shape) == reference["shape"], what
    assert abs(value.mean().item() - reference["mean"]) <= tolerance * reference["std"], what
    value = value.double()
    assert_close(value.std(correction=correction), reference["std"], f"std of {what}", tolerance)
    centre = value[0, :8, value.shape[2] // 2, value.shape[3] // 2]
    assert_close(centre, reference["probe"], f"centre of {what}", probe_tolerance or tolerance)
    if "corner_probe" in reference:
        assert_close(value[0, :8, -1, -1], reference["corner_probe"], f"corner of {what}", probe_tolerance or tolerance)
    if "norm" in reference:
        assert_close(value.norm(), reference["norm"], f"norm of {what}", tolerance)


def assert_logits(logits: Tensor, reference: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    """Compare one image's logits with the recorded first ones and their norm."""
    assert_close(logits[:64], reference["logits"], "logits", tolerance)
    assert_close(logits.norm(), reference["logits_norm"], "logits' norm", tolerance)
