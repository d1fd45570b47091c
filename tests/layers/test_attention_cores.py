"""The cores of FLatten, Agent and InLine in their shells against the released modules, and their rules for any map."""

import json
import math
import re

import pytest
import torch
from neighborhood_cases import distance
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import saccade.layers.qkv
from saccade.layers import CORES, QKVMixer, QKVReducedMixer, build_core, build_mixer, build_qkv_mixer
from saccade.layers.cross_shaped import StripeAttention

from ..fill import GOLDENS, named_tensor, relative_error
from ..official_modules import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, random

FILES = {"agent": "agent_attention_ops", "focused": "focused_linear_ops", "inline": "inline_attention_ops"}
MODULES = {"AgentAttention", "FocusedLinearAttention", "InLineAttention"}
CASES = [
    (core, case)
    for core, file in FILES.items()
    for case in json.loads((GOLDENS / f"{file}.json").read_text())["cases"]
    if case["cls"] in MODULES
]
PROJECTIONS = {"qkv", "q", "kv", "proj", "sr", "norm"}
FEATURE_MAPS = {"identity": "identity", "relu": "relu", "leakyrelu": "leaky_relu", "exp": "exponential"}
# What the stress goldens enlarge, and by how much more than the fill shrinks it.
STRESSED = [
    (r"positional_encoding$", 0.5),
    (r"scale$", 1.0),
    (r"(an|na|ah|aw|ha|wa|ac|ca)_bias$", 1.0),
]


def official_state(case):
    """Return the weights of a case, with what it says was done to them."""
    state = {key: named_tensor(key, shape) for key, shape in case["state"].items()}
    done = case.get("after_fill", "")
    if done.startswith("stress"):
        for key, x in state.items():
            gain = next((gain for pattern, gain in STRESSED if re.search(pattern, key)), None)
            state[key] = x if gain is None else x * gain * math.sqrt(math.prod(x.shape[1:]))
    elif done:
        state["qkv.weight"][:32] *= 1e-4
    return state


def options(core, kwargs):
    """Return our options of a core from the official arguments."""
    if core == "focused":
        return {"focusing_factor": kwargs["focusing_factor"], "kernel_size": kwargs["kernel_size"]}
    if core == "inline":
        return {"feature_map": FEATURE_MAPS[kwargs.get("kernel_func", "identity")]}
    agent_grid = kwargs.get("downstream_agent_shape")
    return {"agent_num": kwargs["agent_num"], "agent_grid": tuple(agent_grid) if agent_grid else None}


def load(module, state):
    """Load official weights into a module around a core, and return our name of each official one."""
    names = {key: key if key.split(".")[0] in PROJECTIONS else f"core.{key}" for key in state}
    names |= {key: key.replace("get_v", "lepe") for key in state if key.startswith("get_v.")}
    module.load_state_dict({names[key]: module.core.resized(key, x) for key, x in state.items()})
    return names


def compare(case, out, inputs, gradients):
    """Compare the output and the gradients of inputs and parameters with a case."""
    assert list(out.shape) == case["output_shape"]
    assert relative_error(out.detach().flatten()[:64], case["output"]) < OUTPUT_TOLERANCE
    assert relative_error(out.detach().norm(), case["output_norm"]) < OUTPUT_TOLERANCE
    (out * random(case["output_shape"], case["cotangent_seed"])).sum().backward()
    for x, reference in zip(inputs, case["grads"], strict=True):
        assert relative_error(x.grad.flatten()[:32], reference["first"]) < GRADIENT_TOLERANCE
        assert relative_error(x.grad.norm(), reference["norm"]) < GRADIENT_TOLERANCE
    assert gradients.keys() == case["param_grad_norms"].keys()
    for key, norm in case["param_grad_norms"].items():
        assert abs(gradients[key].grad.norm().item() - norm) <= GRADIENT_TOLERANCE * max(norm, 1.0), key


@pytest.mark.parametrize(("core", "case"), CASES, ids=lambda x: x if isinstance(x, str) else x["case"])
def test_released_module(core, case):
    inputs = [(random(x["shape"], x["seed"]) * x["scale"]).requires_grad_() for x in case["inputs"]]
    kwargs, state = case["kwargs"], official_state(case)
    if "resolution" in kwargs:
        out, parameters = run_in_cswin(core, kwargs, state, inputs)
    else:
        out, parameters = run_in_shell(core, case, state, inputs[0])
    compare(case, out, inputs, parameters)


def run_in_shell(core, case, state, x):
    kwargs = case["kwargs"]
    grid = tuple(case["extra_args"].get(axis) for axis in "HW")
    side = kwargs.get("window") or kwargs.get("window_size", [None])[0] or math.isqrt(kwargs.get("num_patches", 0))
    native = (side, side) if side and side**2 == kwargs.get("num_patches", side**2) else grid
    shell = {}
    if "q.weight" in state:
        shell = {"pool": 7} if kwargs.get("linear") else {"sr_ratio": kwargs["sr_ratio"]}
    mixer = build_qkv_mixer(
        core,
        kwargs["dim"],
        kwargs["num_heads"],
        native,
        qkv_bias=kwargs["qkv_bias"],
        num_prefix_tokens=int("window" in kwargs),
        **shell,
        **options(core, kwargs),
    )
    names = load(mixer, state)
    if "window" in kwargs:
        out = mixer(x, native)
    else:
        out = mixer(x.unflatten(1, native if grid == (None, None) else grid)).flatten(1, 2)
    parameters = dict(mixer.named_parameters())
    return out, {key: parameters[name] for key, name in names.items()}


def run_in_cswin(core, kwargs, state, inputs):
    """Run a core as CSwin does, in stripes (idx 0 and 1) or the map."""
    side, split = kwargs["resolution"], kwargs["split_size"]
    axis = {-1: None, 0: 1, 1: 0}[kwargs["idx"]]
    grid = {None: (side, side), 0: (split, side), 1: (side, split)}[axis]
    attention = build_core(
        core, kwargs["dim"], kwargs["num_heads"], grid,
        **options(core, kwargs), **({"local": False} if core == "agent" else {}),
    )  # fmt: skip
    branch = StripeAttention(attention, axis, None if axis is None else split)
    names = load(branch, state)
    out = branch(*inputs[0].unflatten(2, (side, side)), *inputs[1:]).flatten(1, 2)
    parameters = dict(branch.named_parameters())
    return out, {key: parameters[name] for key, name in names.items()}


@pytest.mark.parametrize("shell", [{}, {"sr_ratio": 1}, {"sr_ratio": 3}, {"pool": 2}], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (14, 14), (20, 31)])
@pytest.mark.parametrize("core", CORES)
def test_any_map(core, size, shell):
    mixer = build_qkv_mixer(core, 16, 2, **shell)
    x = random([2, *size, 16], 0).requires_grad_()
    out = mixer(x)
    out.square().sum().backward()
    assert out.shape == x.shape
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("core", CORES)
def test_prefix_tokens_take_part_in_the_attention(core):
    mixer = build_qkv_mixer(core, 16, 2, grid=(3, 4), num_prefix_tokens=2)
    x = random([2, 14, 16], 0)
    out = mixer(x, (3, 4))
    assert out.shape == x.shape
    changed = x.clone()
    changed[:, 1] += 1
    assert not torch.isclose(mixer(changed, (3, 4))[:, 2:], out[:, 2:]).all()
    # A core built without biases of prefix tokens attends to them as well.
    assert build_qkv_mixer(core, 16, 2, grid=(3, 4))(x, (3, 4)).shape == x.shape


@pytest.mark.parametrize("shell", [{}, {"sr_ratio": 2}], ids=str)
@pytest.mark.parametrize("core", CORES)
def test_tables_follow_the_map_continuously(core, shell):
    """Resampling at each call, for good, or on loading is the same; and a map one row larger changes little."""
    torch.manual_seed(0)
    mixer = build_qkv_mixer(core, 8, 2, grid=(8, 8), **shell)
    for name, p in mixer.core.named_parameters():
        if p.dim() > 1 and ("bias" in name or name == "positional_encoding"):
            nn.init.normal_(p)
    x = random([2, 12, 10, 8], 1)
    out, official = mixer(x), {key: value.clone() for key, value in mixer.state_dict().items()}
    key_grid = (6, 5) if shell else None
    mixer.core.set_grid((12, 10), key_grid)
    assert distance(mixer(x), out) < 1e-6
    other = build_qkv_mixer(core, 8, 2, grid=(12, 10), **shell)
    other.load_state_dict(
        {key: other.core.resized(key.removeprefix("core."), value) for key, value in official.items()}
    )
    assert distance(other(x), out) < 1e-6
    assert all(p.requires_grad for p in mixer.parameters())


@pytest.mark.parametrize("core", CORES)
def test_export_for_any_map(core):
    mixer = build_qkv_mixer(core, 16, 2, grid=8).eval()
    sizes = {1: torch.export.Dim("height", max=512), 2: torch.export.Dim("width", max=512)}
    program = torch.export.export(mixer, (random([2, 10, 9, 16], 0),), dynamic_shapes=(sizes,))
    for size in ((8, 8), (5, 12)):
        x = random([2, *size, 16], 1)
        torch.testing.assert_close(program.module()(x), mixer(x))


@pytest.mark.parametrize("core", CORES)
def test_compile(core):
    mixer = build_qkv_mixer(core, 16, 2, grid=4)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    x = random([2, 5, 4, 16], 0)
    results = []
    for function in (mixer, compiled):
        mixer.zero_grad()
        out = function(x)
        out.square().sum().backward()
        results.append((out, *(p.grad for p in mixer.parameters())))
    for value, truth in zip(*results, strict=True):
        torch.testing.assert_close(value, truth)


@pytest.mark.parametrize("core", ["agent", "focused", "inline"])
def test_per_sample_gradients_and_inference_mode(core):
    mixer = build_qkv_mixer(core, 16, 2, grid=4).double()
    parameters = {name: p.detach() for name, p in mixer.named_parameters()}
    x = random([3, 5, 4, 16], 0).double()

    def loss(parameters, x):
        return torch.func.functional_call(mixer, parameters, (x,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x.unsqueeze(1))
    out = mixer(x)
    out.square().sum().backward()
    for name, p in mixer.named_parameters():
        torch.testing.assert_close(found[name].sum(0), p.grad)
    with torch.inference_mode():
        torch.testing.assert_close(mixer(x), out)


@pytest.mark.parametrize("core", ["agent", "focused"])
@pytest.mark.parametrize("prefixed", [0, 2])
def test_convolutions_add_their_values_to_tokens_themselves(core, prefixed):
    """A prefix, which is no part of the map, needs a pass of its own."""
    given = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            if function is torch.ops.saccade.depthwise_conv2d.default:
                given.append(arguments[4])
            return function(*arguments, **(kwargs or {}))

    core = build_core(core, 8, 2, (3, 4), num_prefix_tokens=prefixed)
    with Record():
        core(*random([3, 2, 12 + prefixed, 8], 0), (3, 4), num_prefix_tokens=prefixed)
    assert [add is None for add in given] == [bool(prefixed)]


def test_focused_position_is_added_to_keys_alone():
    core = build_core("focused", 8, 2, (3, 4))
    nn.init.normal_(core.positional_encoding)
    q, k, v = random([3, 2, 12, 8], 0)
    moved = k + core.positional_encoding.flatten(0, 1)
    out = core(q, k, v, (3, 4))
    nn.init.zeros_(core.positional_encoding)
    torch.testing.assert_close(out, core(q, moved, v, (3, 4)))
    flat = random([1, 12, 8], 1)
    assert torch.equal(core.resized("positional_encoding", flat).flatten(0, 1), flat[0])
    assert core.resized("positional_encoding", random([1, 49, 8], 1)).shape == (3, 4, 8)


def test_agent_biases_by_their_definition():
    """Sum of a resampled 7x7 table, a row table and a column table; a prefix token's own."""
    core = build_core("agent", 8, 2, (7, 5), num_prefix_tokens=1, agent_num=4)
    for p in core.parameters():
        nn.init.normal_(p)
    bias = core._bias(("an_bias", "ah_bias", "aw_bias"), core.ac_bias[0], (7, 5), 1)
    local = F.interpolate(core.an_bias, size=(7, 5), mode="bilinear")
    for head, agent, row, column in ((0, 0, 0, 0), (1, 3, 6, 4), (1, 2, 3, 1)):
        expected = local[head, agent, row, column] + core.ah_bias[0, head, agent, row, 0]
        expected = expected + core.aw_bias[0, head, agent, 0, column]
        torch.testing.assert_close(bias[head, agent, 1 + 5 * row + column], expected)
    assert torch.equal(bias[:, :, 0], core.ac_bias[0, :, :, 0])


def test_inline_needs_the_mean():
    core = build_core("inline", 8, 2)
    x = random([1, 12, 8], 0)
    with pytest.raises(ValueError, match=r"mean=None; valid: \[B, C\], the mean of the layer's input"):
        core(x, x, x, (3, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_core("nope", 8, 2), "core 'nope' is unknown; there are agent, .*, inline, l2"),
        (lambda: build_core("softmax", 9, 2), "dim=9 must be a multiple of num_heads=2"),
        (lambda: build_core("softmax", 9, 0), "dim=9 must be a multiple of num_heads=0"),
        (lambda: build_core("agent", 8, 2, agent_num=10), "agent_num=10 must be a square number of at least 1"),
        (lambda: build_core("agent", 8, 2, agent_num=0), "agent_num=0 must be a square number of at least 1"),
        (lambda: build_core("focused", 8, 2, kernel_size=4), "kernel_size=4 must be odd and at least 1"),
        (lambda: build_mixer("agent", 8, 2, sr_ratio=0), "sr_ratio=0 must be at least 1"),
        (lambda: build_mixer("inline", 8, 2, feature_map="nope"), "feature_map='nope' is unknown; valid: identity"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_shell_follows_the_reduction():
    assert isinstance(build_mixer("softmax", 8, 2), QKVMixer)
    assert isinstance(build_mixer("softmax", 8, 2, sr_ratio=1), QKVReducedMixer)
    assert not hasattr(build_mixer("softmax", 8, 2, sr_ratio=1), "sr")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shell", [{}, {"sr_ratio": 1}], ids=str)
def test_large_projections_are_made_in_parts(shell, bias, monkeypatch):
    mixer = build_mixer("softmax", 16, 2, qkv_bias=bias, **shell)
    x = random([2, 4, 5, 16], 0)
    whole = mixer(x)
    monkeypatch.setattr(saccade.layers.qkv, "LARGE", 0)
    torch.testing.assert_close(mixer(x), whole)
    # Hooks and replacements of a projection are called as ever.
    linear = getattr(mixer, "kv" if shell else "qkv")
    linear.register_forward_hook(lambda module, inputs, out: out + 1)
    assert not torch.isclose(mixer(x), whole).all()


@pytest.mark.parametrize("name", ["focused", "agent", "inline"])
def test_operations_grow_linearly_with_tokens(name):
    """Maps of stage 1 at 224, 448 and 896, all of another size than the tables."""
    flops = []
    with torch.device("meta"):
        mixer = build_mixer(name, 64, 2, grid=28)
        for side in (56, 112, 224):
            with FlopCounterMode(display=False) as counter:
                mixer(torch.empty(1, side, side, 64))
            flops.append(counter.get_total_flops())
    # The kernel that InLine predicts costs the same for any map, resampling the rows of a table grows with the side.
    assert 3.8 * flops[0] < flops[1] < 4.1 * flops[0]
    assert 3.8 * flops[1] < flops[2] < 4.1 * flops[1]
