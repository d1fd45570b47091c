"""VAN on a CPU against the official module graph of plain torch modules, which works on NCHW maps."""

import time

import pytest
import timm
import torch

from saccade.models.van_checkpoint import checkpoint_filter_fn

from .plain_van import PlainVAN


@pytest.mark.speed
def test_no_slower_than_plain_modules():
    plain = PlainVAN((32, 64, 160, 256), (3, 3, 5, 2), (8, 8, 4, 4)).eval()
    ours = timm.create_model("van_b0").eval()
    ours.load_state_dict(checkpoint_filter_fn(plain.state_dict(), ours))
    image = torch.randn(8, 3, 224, 224)
    times = {ours: [], plain: []}
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), plain(image), rtol=1e-4, atol=1e-4)
        for _ in range(7):
            for model, taken in times.items():
                start = time.perf_counter()
                model(image)
                taken.append(time.perf_counter() - start)
    mine, theirs = (sorted(taken)[3] * 1e3 for taken in times.values())
    print(f"van_b0, 8 images: {mine:.0f} ms, plain modules {theirs:.0f} ms")
    assert mine <= 1.05 * theirs
