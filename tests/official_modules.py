"""Our modules against the numbers of released ones: filled by name, run on seeded inputs, differentiated."""

from typing import Any

import torch
from torch import Tensor, nn

from .fill import named_tensor, relative_error

OUTPUT_TOLERANCE = 5e-6
GRADIENT_TOLERANCE = 1e-5


def random(shape: list[int], seed: int) -> Tensor:
    """Return the normal tensor that a seed stands for."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cotangent(case: dict[str, Any]) -> Tensor:
    """Return what the recorded gradients are of: the sum of the output times this."""
    return random(case["output"]["shape"], case["cotangent_seed"])


def fill_by_name(module: nn.Module, official: dict[str, str] | None = None) -> None:
    """Give a module in evaluation mode the weights that the official names stand for.

    Args:
        official: our key -> the official one, where they differ.
    """
    state = module.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = named_tensor((official or {}).get(key, key), list(value.shape))
    module.load_state_dict(state)
    module.eval()


def assert_output(out: Tensor, case: dict[str, Any]) -> None:
    """Compare an output, laid out as the official one, with the recorded first values and norm."""
    out = out.detach()
    assert list(out.shape) == case["output"]["shape"]
    assert relative_error(out.flatten()[:64], case["output"]["first64"]) < OUTPUT_TOLERANCE
    assert relative_error(out.norm(), case["output"]["norm"]) < OUTPUT_TOLERANCE


def assert_gradients(case: dict[str, Any], grad_input: Tensor, parameters: dict[str, Tensor]) -> None:
    """Compare the gradients of the input, laid out as the official one, and of parameters under official names."""
    assert relative_error(grad_input.flatten()[:32], case["grad_input"]["first32"]) < GRADIENT_TOLERANCE
    assert relative_error(grad_input.norm(), case["grad_input"]["norm"]) < GRADIENT_TOLERANCE
    assert parameters.keys() == case["grad_param_norm"].keys()
    for key, norm in case["grad_param_norm"].items():
        assert abs(parameters[key].grad.norm().item() - norm) <= GRADIENT_TOLERANCE * max(norm, 1.0), key


def float64_inputs(case: dict[str, Any]) -> dict[str, Tensor]:
    """Return the inputs of a case that was recorded in float64, by name, asking for gradients."""
    return {x["name"]: (random(x["shape"], x["seed"]) * x["scale"]).double().requires_grad_() for x in case["inputs"]}


def assert_float64(case: dict[str, Any], inputs: dict[str, Tensor], out: Tensor, tolerance: float = 1e-7) -> None:
    """Compare the output of such a case, and after a backward pass the gradients of its inputs."""
    assert list(out.shape) == case["output"]["shape"]
    assert relative_error(out.detach().flatten()[:64], case["output"]["first64"]) < tolerance
    assert relative_error(out.detach().norm(), case["output"]["norm"]) < tolerance
    (out * cotangent(case).double()).sum().backward()
    for name, x in inputs.items():
        reference = case["grads"][name]
        assert relative_error(x.grad.flatten()[:32], reference["first32"]) < tolerance, name
        assert relative_error(x.grad.norm(), reference["norm"]) < tolerance, name
