"""Detectors and segmentors train on a GPU, in bfloat16, with the operators the toolboxes compile there."""

from importlib.util import find_spec

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("mmcv") is None, reason="needs mmdet and mmseg: make dense"),
]


@pytest.mark.parametrize("head", ["Mask R-CNN", "UPerNet"])
@pytest.mark.parametrize("name", ["nat_nano", "van_nano", "focalnet_nano", "litv2_nano"])
def test_training_step(head, name):
    from saccade.tools.dense.benchmark import measure

    row = measure(head, name, (2, 192, 256), torch.device("cuda"), compiled=False)
    assert row["train_images_per_s"] > 0 and row["train_peak_GiB"] > 0


def test_regions_in_bfloat16():
    """Pooled from bfloat16 maps in channels_last memory as on the CPU from the same values."""
    from saccade.tools.dense.roi_extractor import SingleRoIExtractor

    layer = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0}
    extractor = SingleRoIExtractor(layer, 16, [4, 8, 16, 32])
    maps = [torch.randn(1, 16, 64 // 2**i, 64 // 2**i).bfloat16() for i in range(4)]
    regions = torch.tensor([[0, 3.3, 5.7, 201.3, 177.9], [0, 10.0, 20.0, 60.5, 40.25]])
    expected = extractor(maps, regions)
    there = [feature.cuda().to(memory_format=torch.channels_last) for feature in maps]
    with torch.autocast("cuda", torch.bfloat16):
        got = extractor(there, regions.cuda())
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=1e-5)
