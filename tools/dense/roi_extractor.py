"""mmdet's extractor of regions of interest, kept at full precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor as _SingleRoIExtractor
from torch import Tensor


class SingleRoIExtractor(_SingleRoIExtractor):
    """Pools regions in float32 from contiguous maps, as mmdet 2 did.

    mmdet 3 rounds the corners of the regions to the type of the maps, which in bfloat16 is up to 4 pixels, and mmcv's
    RoIAlign neither knows that type nor looks at strides.
    """

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Maps [B, C, h, w] and regions [N, 5] (image, x1, y1, x2, y2) -> [N, C, *output_size], float32."""
        maps = tuple(feature.float().contiguous() for feature in feats)
        with torch.autocast(rois.device.type, enabled=False):
            return super().forward(maps, rois.float(), roi_scale_factor)
