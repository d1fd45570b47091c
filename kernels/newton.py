"""Inverses of positive definite matrices by Newton's iteration: matrix products alone, on any device."""

import torch
from torch import Tensor


def newton_inverse(matrix: Tensor, iterations: int = 20) -> Tensor:
    """Return approximate inverses of matrices [..., n, n], with 0.01 added to their diagonals.

    The gradient is that of an exact inverse, not of the iteration, as in the released training; it takes no memory for
    the steps.

    Source: SOFT, arXiv 2110.11945.
    """
    regular = matrix + 0.01 * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    fixed = regular.detach()
    largest = matrix.detach().sum(-1).amax(-1)[..., None, None]
    inverse = 1.8 / largest**2 * fixed
    for _ in range(iterations):
        inverse = 2 * inverse - inverse @ fixed @ inverse
    if not matrix.requires_grad:
        return inverse
    # Nothing is added to the value; d(A^-1) = -A^-1 dA A^-1.
    product = inverse @ regular @ inverse
    return inverse + (product.detach() - product)


def newton_inverse_together(matrix: Tensor, iterations: int = 20) -> Tensor:
    """Return approximate inverses of matrices [..., n, n] by an iteration that all of them begin alike.

    It begins at a multiple of the matrix, which is halved until all of the batch are in reach, at most ten times. The
    gradient goes through the iteration.

    Source: SOFT++, arXiv 2207.03341.
    """
    factor = 2 / matrix.sum(-1).max() ** 2
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    square = matrix.detach() @ matrix.detach()
    for _ in range(10):
        distance = (identity - factor.detach() * square).abs().sum(-2).max()
        factor = torch.where(distance > 1.01, factor / 2, factor)
    inverse = factor * matrix
    for _ in range(iterations):
        inverse = 2 * inverse - inverse @ matrix @ inverse
    return inverse
