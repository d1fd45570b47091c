"""VAN on a CPU against the official module graph of plain torch modules, which works on NCHW maps."""

import pytest
import timm

from saccade.models.van_checkpoint import checkpoint_filter_fn

from ..speed import assert_same_and_no_slower
from .plain_van import PlainVAN


@pytest.mark.speed
def test_no_slower_than_plain_modules():
    plain = PlainVAN((32, 64, 160, 256), (3, 3, 5, 2), (8, 8, 4, 4)).eval()
    ours = timm.create_model("van_b0").eval()
    ours.load_state_dict(checkpoint_filter_fn(plain.state_dict(), ours))
    assert_same_and_no_slower(ours, plain, "van_b0")
