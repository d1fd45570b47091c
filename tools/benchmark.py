"""`saccade benchmark`: times of our operators and models beside the alternatives, on whatever machine this is.

    saccade benchmark kernels op=neighborhood     every row of kernels/neighborhood/NOTES.md
    saccade benchmark models                      nat_tiny beside timm's swin_tiny
    saccade benchmark models names=van_b2,convnext_tiny size=384 mode=default
    saccade benchmark dense                       training Mask R-CNN and UPerNet (needs mmdet and mmseg)

`out=DIR` (default `benchmarks`) receives `<name>.json`, with the versions, and `<name>.png`. A CPU gets reduced sizes.
"""

from __future__ import annotations

import datetime
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import timm
import torch

from .. import __version__
from ..kernels.neighborhood import neighborhood_attention
from .errors import UserError, check_choice

# batch, height, width, heads, head dimension, window, dilation, relative position bias
NEIGHBORHOOD = (
    (128, 56, 56, 2, 32, 7, 1, True),
    (128, 28, 28, 4, 32, 7, 1, True),
    (128, 14, 14, 8, 32, 7, 1, True),
    (128, 7, 7, 16, 32, 7, 1, True),
    (128, 56, 56, 2, 32, 7, 8, True),
    (2, 200, 304, 2, 32, 7, 1, True),
    (8, 64, 64, 12, 64, 7, 1, True),
    (1, 128, 128, 16, 64, 13, 1, True),
    (1, 256, 256, 8, 128, 16, 1, False),
)
REDUCED = ((2, 28, 28, 2, 32, 7, 1, True), (2, 14, 14, 4, 32, 7, 1, True), (2, 7, 7, 8, 32, 7, 1, True))
DENSE_TOKENS = 1 << 13
MODELS = ("nat_tiny", "swin_tiny_patch4_window7_224")
# With CUDA graphs ("reduce-overhead") a fast GPU does not wait for the CPU to launch kernels.
MODES = ("reduce-overhead", "default", "max-autotune")


def device_time(function: Callable[[], object], device: torch.device, calls: int = 5, repeats: int = 15) -> float:
    """Return the median time of a call in milliseconds: of CUDA graph replays, or by the clock on a CPU."""
    if device.type != "cuda":
        return statistics.median(_clock(function) for _ in range(repeats // 5 + 1)) * 1e3
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return statistics.median(times)


def _clock(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def neighborhood_rows(device: torch.device) -> Iterator[dict]:
    """Time neighborhood attention, NATTEN where it is installed, and dense attention where the map is small enough."""
    cuda = device.type == "cuda"
    for batch, height, width, heads, channels, window, dilation, biased in NEIGHBORHOOD if cuda else REDUCED:
        dtype = torch.bfloat16 if cuda else torch.float32
        case = f"{batch}x{height}x{width} heads {heads} dim {channels} window {window} dilation {dilation}"
        qkv = torch.randn(batch, height, width, 3, heads, channels, device=device, dtype=dtype)
        q, k, v = (x.requires_grad_() for x in qkv.unbind(-3))
        table = 2 * window - 1
        bias = torch.randn(heads, table, table, device=device).requires_grad_() if biased else None
        dout = torch.randn(batch, height, width, heads, channels, device=device, dtype=dtype)
        with_bias = " + bias" if biased else ""

        def ours(q=q, k=k, v=v, bias=bias, window=window, dilation=dilation):
            return neighborhood_attention(q, k, v, window, dilation=dilation, bias=bias)

        yield _row(case, f"saccade{with_bias}", ours, [q, k, v] + [bias] * biased, dout, device)
        for name, na2d in _natten(cuda).items():

            def theirs(q=q, k=k, v=v, window=window, dilation=dilation, na2d=na2d):
                return na2d(q, k, v, kernel_size=window, dilation=dilation)

            yield _row(case, name, theirs, [q, k, v], dout, device)
        if height * width <= DENSE_TOKENS:

            def dense(q=q, k=k, v=v):
                tokens = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
                out = torch.nn.functional.scaled_dot_product_attention(*tokens)
                return out.transpose(1, 2).reshape(q.shape)

            yield _row(case, "dense attention", dense, [q, k, v], dout, device)


def _natten(cuda: bool) -> dict[str, Callable]:
    """NATTEN where it is installed: what it chooses itself, or without its compiled library its flex backend."""
    try:
        import natten
    except ImportError:
        return {}
    if natten.HAS_LIBNATTEN or not cuda:
        return {"natten": natten.na2d}
    natten.allow_flex_compile(True, backprop=True)
    return {"natten flex": functools.partial(natten.na2d, backend="flex-fna", torch_compile=True)}


def _row(case: str, implementation: str, function: Callable, inputs: list, dout: torch.Tensor, device) -> dict:
    row = {"case": case, "implementation": implementation}

    def infer():
        with torch.no_grad():
            return function()

    def train():
        return torch.autograd.grad(function(), inputs, dout)

    try:
        row["forward_ms"] = device_time(infer, device)
        row["forward_backward_ms"] = device_time(train, device)
    except RuntimeError as error:
        # Memory, or a shape that another implementation does not take: the table says so and goes on.
        row["error"] = str(error).splitlines()[0]
    return row


def model_rows(device: torch.device, names: Sequence[str], size: int, mode: str) -> Iterator[dict]:
    """Images per second of inference and of training (forward, backward, AdamW step), and peak training memory.

    Models are compiled in one of the modes of `torch.compile` on a GPU, and left as they are on a CPU.
    """
    cuda = device.type == "cuda"
    infer_batch, train_batch = (256, 128) if cuda else (2, 2)
    for name in names:
        model = timm.create_model(name, **({"img_size": size} if "swin" in name else {}))
        model = model.to(device, memory_format=torch.channels_last)
        step = torch.compile(model, mode=mode) if cuda else model
        case = f"{infer_batch} / {train_batch} images of {size}"
        row = {"case": f"{case}, {mode}" if cuda else case, "implementation": name}
        images = torch.randn(infer_batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        model.eval()

        def infer(step=step, images=images):
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
                return step(images)

        row["infer_images_per_s"] = infer_batch / call_seconds(infer, cuda)
        model.train()
        images = images[:train_batch]
        labels = torch.randint(0, 1000, (train_batch,), device=device)
        optimizer = torch.optim.AdamW(model.parameters(), fused=cuda)

        def train(step=step, images=images, labels=labels, optimizer=optimizer):
            with torch.autocast(device.type, torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(step(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if cuda:
            torch.cuda.reset_peak_memory_stats()
        row["train_images_per_s"] = train_batch / call_seconds(train, cuda)
        row["train_peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
        del model, step, optimizer
        yield row


def call_seconds(function: Callable[[], object], cuda: bool) -> float:
    """Return the seconds of a call in a row of calls, as in training, after warming up; the median of three rows."""
    warm, calls = (5, 20) if cuda else (1, 1)
    for _ in range(warm):
        function()

    def row():
        for _ in range(calls):
            function()
        if cuda:
            torch.cuda.synchronize()

    if cuda:
        torch.cuda.synchronize()
    return statistics.median(_clock(row) for _ in range(3)) / calls


def environment(device: torch.device) -> dict:
    """What the figures depend on."""
    versions = {"saccade": __version__, "torch": torch.__version__, "timm": timm.__version__}
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    return {"date": datetime.date.today().isoformat(), "device": name, **versions}


def draw(rows: list[dict], path: Path, title: str) -> None:
    """Draw every measure of the rows as bars on a logarithmic scale."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    measures = [key for key in rows[0] if isinstance(rows[0][key], float)]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["implementation"].removesuffix(" + bias") for row in rows))
    figure, axes = pyplot.subplots(1, len(measures), figsize=(7 * len(measures), 1.5 + 0.7 * len(cases)), squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        for n, name in enumerate(names):
            mine = [r for r in rows if r["implementation"].removesuffix(" + bias") == name and r.get(measure)]
            places = [cases.index(row["case"]) + 0.8 * (n + 0.5) / len(names) - 0.4 for row in mine]
            axis.barh(places, [row[measure] for row in mine], 0.7 / len(names), label=name)
        axis.set(xscale="log", xlabel=measure.replace("_", " "), yticks=range(len(cases)))
        axis.set_yticklabels(cases if axis is axes[0][0] else [])
        axis.invert_yaxis()
    axes[0][0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def show(row: dict) -> str:
    """Return a row as one line."""
    figures = (f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))
    return "  ".join((f"{row['case']:50}", f"{row['implementation']:30}", *figures, row.get("error", "")))


def write_rows(name: str, rows: list[dict], folder: Path, device: torch.device) -> None:
    """Write the rows with what they depend on, and the picture of them."""
    folder.mkdir(parents=True, exist_ok=True)
    about = environment(device)
    (folder / f"{name}.json").write_text(json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")
    draw(rows, folder / f"{name}.png", f"{name}, {about['device']}, {about['date']}")
    print(f"wrote {folder / name}.json and .png")


def main(words: list[str]) -> None:
    if words[:1] == ["dense"]:
        return import_module(".dense.benchmark", __package__).main(words[1:])
    if not words or "=" in words[0]:
        raise UserError("saccade benchmark needs a subject: kernels op=neighborhood, models, or dense")
    subject = check_choice("subject", words[0], ("kernels", "models", "dense"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"out": "benchmarks"}
    if subject == "kernels":
        settings["op"] = "neighborhood"
    else:
        size = "224" if device.type == "cuda" else "64"
        settings |= {"names": ",".join(MODELS), "size": size, "mode": "reduce-overhead"}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals or key not in settings:
            raise UserError(f"unexpected {word!r}: benchmark {subject} takes {', '.join(f'{k}=...' for k in settings)}")
        settings[key] = value
    if subject == "kernels":
        name, found = check_choice("op", settings["op"], ("neighborhood",)), neighborhood_rows(device)
    else:
        names = [check_choice("names", name, timm.list_models()) for name in settings["names"].split(",")]
        mode = check_choice("mode", settings["mode"], MODES)
        if not settings["size"].isdecimal() or int(settings["size"]) < 32:
            raise UserError(f"size={settings['size']} is not valid: give pixels, 32 or more")
        name, found = "models", model_rows(device, names, int(settings["size"]), mode)
    rows = []
    for row in found:
        rows.append(row)
        print(show(row), flush=True)
    write_rows(name, rows, Path(settings["out"]), device)
