"""What every operator owes torch: gradients, compilers, export, vmap, checkpointing, empty batches, clear refusals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from neighborhood_cases import distance
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Args:
        ours: the call, from tensors by name.
        tensors: a function from a dtype to those tensors, asking for gradients.
        without_batch: names of those without a batch axis.
    """

    name: str
    ours: Callable[..., Tensor]
    tensors: Callable[..., dict[str, Tensor]]
    without_batch: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name

    def positional(self, dtype: torch.dtype = torch.float64) -> tuple[Callable[..., Tensor], list[Tensor]]:
        """Return the call as a function of its tensors in order, and the tensors."""
        tensors = self.tensors(dtype)
        return lambda *values: self.ours(**dict(zip(tensors, values, strict=True))), list(tensors.values())


class OperatorContract:
    """Tests of an operator; a class of tests inherits them and is parametrised over `Call`s as `problem`."""

    operator: str
    """Name of the custom op in torch.ops.saccade; its backward op is called the same with `_backward`."""

    def test_gradcheck(self, problem):
        assert torch.autograd.gradcheck(*problem.positional())

    def test_opcheck(self, problem, monkeypatch):
        torch.use_deterministic_algorithms(False)  # opcheck compares fresh memory
        for name in (self.operator, f"{self.operator}_backward"):
            op = getattr(torch.ops.saccade, name).default
            for arguments in self._recorded(problem, op):
                torch.library.opcheck(op, arguments)

    def _recorded(self, problem, op) -> list[tuple[Any, ...]]:
        """Return the arguments that a call and its gradient give to a custom op."""
        recorded = []

        class Record(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
                if function is op:
                    recorded.append(arguments)
                return function(*arguments, **(kwargs or {}))

        function, tensors = problem.positional(torch.float32)
        with Record():
            function(*tensors).sum().backward()
        assert recorded
        backward = op._name.endswith("_backward")
        return [
            tuple(
                x.detach().requires_grad_(not backward and x.is_floating_point()) if isinstance(x, Tensor) else x
                for x in arguments
            )
            for arguments in recorded
        ]

    def test_compile(self, problem):
        torch._dynamo.reset()  # every problem is compiled from one lambda
        function, tensors = problem.positional(torch.float32)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        results = [
            (out := f(*tensors), *torch.autograd.grad(out.square().sum(), tensors)) for f in (function, compiled)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    @pytest.mark.parametrize("shared_too", [False, True])
    def test_vmap_and_per_sample_gradients(self, problem, shared_too):
        function, tensors = problem.positional()
        tensors = [x.detach() for x in tensors]
        names = list(problem.tensors())
        dims = tuple(None if name in problem.without_batch and not shared_too else 0 for name in names)
        stacked = [
            x if dim is None else torch.stack([x, x.flip(-1), x.roll(1, -1)])
            for x, dim in zip(tensors, dims, strict=True)
        ]
        gradient = torch.func.grad(lambda *values: function(*values).square().sum(), argnums=tuple(range(len(tensors))))
        outs = torch.func.vmap(function, in_dims=dims)(*stacked)
        found = torch.func.vmap(gradient, in_dims=dims)(*stacked)
        for i in range(3):
            values = [x if dim is None else x[i] for x, dim in zip(stacked, dims, strict=True)]
            assert distance(outs[i], function(*values)) < 1e-12
            assert all(distance(x[i], true) < 1e-12 for x, true in zip(found, gradient(*values), strict=True))

    def test_activation_checkpointing(self, problem):
        function, tensors = problem.positional()
        plain = torch.autograd.grad(function(*tensors).square().sum(), tensors)
        again = torch.autograd.grad(checkpoint(function, *tensors, use_reentrant=False).square().sum(), tensors)
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))

    def test_only_what_asks_for_a_gradient_gets_one(self, problem):
        tensors = problem.tensors()
        truth = torch.autograd.grad(problem.ours(**tensors).square().sum(), list(tensors.values()))
        for asked, true in zip(tensors, truth, strict=True):
            alone = {name: x.detach().requires_grad_(name == asked) for name, x in tensors.items()}
            problem.ours(**alone).square().sum().backward()
            assert distance(alone[asked].grad, true) < 1e-12
            assert all(x.grad is None for name, x in alone.items() if name != asked)

    def test_empty_batch(self, problem):
        tensors = problem.tensors(torch.float32)
        empty = {
            name: x if name in problem.without_batch else x.detach()[:0].requires_grad_() for name, x in tensors.items()
        }
        out = problem.ours(**empty)
        gradients = torch.autograd.grad(out.sum(), list(empty.values()))
        assert out.shape == problem.ours(**tensors)[:0].shape
        assert all(not gradient.count_nonzero() for gradient in gradients)

    def test_second_derivatives_are_refused(self, problem):
        function, tensors = problem.positional()
        (gradient,) = torch.autograd.grad(function(*tensors).square().sum(), tensors[0], create_graph=True)
        with pytest.raises(RuntimeError, match=f"saccade::{self.operator} is differentiable once"):
            gradient.sum().backward()
