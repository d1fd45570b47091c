"""NAT on a CPU beside timm's Swin: with the last NATTEN that had CPU kernels it took 3.3 times as long."""

import pytest
import timm

import saccade  # noqa: F401  registers the models

from ..speed import assert_no_slower


@pytest.mark.speed
def test_nat_mini_is_no_slower_than_swin_tiny():
    models = (timm.create_model(name) for name in ("nat_mini", "swin_tiny_patch4_window7_224"))
    assert_no_slower(*models, "nat_mini beside swin_tiny", bound=1)
