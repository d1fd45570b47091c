"""Timing on a GPU: graphs, what cannot be one, and a row of each kind."""

import pytest
import torch

from saccade.tools.benchmark.kernels import FLOOR, OURS, rows
from saccade.tools.benchmark.models import rows as model_rows
from saccade.tools.benchmark.timing import CaptureError, device_time

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_device_time():
    device = torch.device("cuda")
    x = torch.zeros(2**28, dtype=torch.uint8, device=device)
    assert 0.02 < device_time(x.clone, device) < 5
    assert 20 < device_time(lambda: torch.cuda._sleep(10**8), device) < 1000


def test_what_cannot_be_captured():
    device = torch.device("cuda")
    x = torch.zeros(4, device=device)
    with pytest.raises(CaptureError):
        device_time(lambda: x.sum().item(), device)
    assert device_time(lambda: x.sum().item(), device, graph=False) > 0
    assert device_time(x.sum, device) > 0


def test_rows():
    found = {row["implementation"]: row for row in rows("window", torch.device("cuda"), ("eager",), chosen="window 7")}
    assert found[OURS]["forward_ms"] > found[FLOOR]["forward_ms"] / 2 and "met" in found[OURS]
    assert all("error" not in row and "note" not in row for row in found.values())


def test_model_rows():
    first, second = model_rows(["ravlt_nano"], [64, 128], ["infer", "train", "share"], torch.device("cuda"), "default")
    for row in (first, second):
        assert not [key for key in row if key.endswith("error")], row
        assert row["train_images_per_s"] > 0 and 0 < row["train_attention_share"] < 1 and row["judged"]
    assert second["infer_batch"] == first["infer_batch"] // 4
