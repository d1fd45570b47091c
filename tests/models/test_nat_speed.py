"""NAT on a CPU beside timm's Swin: with the last NATTEN that had CPU kernels it took 3.3 times as long."""

import pytest
import timm

import saccade  # noqa: F401  registers the models

from ..speed import median_ms


@pytest.mark.speed
def test_nat_mini_is_no_slower_than_swin_tiny():
    nat, swin = median_ms(timm.create_model("nat_mini"), timm.create_model("swin_tiny_patch4_window7_224"))
    print(f"nat_mini {nat:.0f} ms, swin_tiny {swin:.0f} ms")
    assert nat <= swin
