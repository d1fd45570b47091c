"""How detectron2's Mask2Former names what mmdet's and mmseg's Mask2FormerHead have (facebookresearch/Mask2Former)."""

from __future__ import annotations

from torch import Tensor

MASK2FORMER = "sem_seg_head."

_PIXELS = r"^sem_seg_head\.pixel_decoder\."
_PREDICTOR = r"^sem_seg_head\.predictor\."

# Patterns and replacements of re.sub, applied one after the other.
MASK2FORMER_NAMES = [
    (_PIXELS + r"input_proj\.(\d+)\.0\.", r"sem_seg_head.pixel_decoder.input_convs.\1.conv."),
    (_PIXELS + r"input_proj\.(\d+)\.1\.", r"sem_seg_head.pixel_decoder.input_convs.\1.gn."),
    (_PIXELS + r"transformer\.level_embed$", "sem_seg_head.pixel_decoder.level_encoding.weight"),
    (_PIXELS + r"transformer\.encoder\.", "sem_seg_head.pixel_decoder.encoder."),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.norm1\.", r"\1.norms.0."),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.norm2\.", r"\1.norms.1."),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.linear1\.", r"\1.ffn.layers.0.0."),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.linear2\.", r"\1.ffn.layers.1."),
    (_PIXELS + r"mask_features\.", "sem_seg_head.pixel_decoder.mask_feature."),
    # The one map of the pyramid that the encoder does not see.
    (_PIXELS + r"adapter_1\.norm\.", "sem_seg_head.pixel_decoder.lateral_convs.0.gn."),
    (_PIXELS + r"adapter_1\.", "sem_seg_head.pixel_decoder.lateral_convs.0.conv."),
    (_PIXELS + r"layer_1\.norm\.", "sem_seg_head.pixel_decoder.output_convs.0.gn."),
    (_PIXELS + r"layer_1\.", "sem_seg_head.pixel_decoder.output_convs.0.conv."),
    (_PREDICTOR + r"transformer_cross_attention_layers\.(\d+)\.multihead_attn\.", r"layers.\1.cross_attn.attn."),
    (_PREDICTOR + r"transformer_cross_attention_layers\.(\d+)\.norm\.", r"layers.\1.norms.0."),
    (_PREDICTOR + r"transformer_self_attention_layers\.(\d+)\.self_attn\.", r"layers.\1.self_attn.attn."),
    (_PREDICTOR + r"transformer_self_attention_layers\.(\d+)\.norm\.", r"layers.\1.norms.1."),
    (_PREDICTOR + r"transformer_ffn_layers\.(\d+)\.linear1\.", r"layers.\1.ffn.layers.0.0."),
    (_PREDICTOR + r"transformer_ffn_layers\.(\d+)\.linear2\.", r"layers.\1.ffn.layers.1."),
    (_PREDICTOR + r"transformer_ffn_layers\.(\d+)\.norm\.", r"layers.\1.norms.2."),
    (r"^layers\.", "sem_seg_head.transformer_decoder.layers."),
    (_PREDICTOR + r"decoder_norm\.", "sem_seg_head.transformer_decoder.post_norm."),
    (_PREDICTOR + r"class_embed\.", "sem_seg_head.cls_embed."),
    # Linear layers, with a ReLU after each but the last.
    (_PREDICTOR + r"mask_embed\.layers\.(\d+)\.", lambda match: f"sem_seg_head.mask_embed.{2 * int(match[1])}."),
    # The first files call the queries static.
    (_PREDICTOR + r"static_query\.", "sem_seg_head.query_feat."),
    (_PREDICTOR, "sem_seg_head."),
]

# Where stuff stands among ADE20K's 150 classes. detectron2 leaves the classes in their order, mmdet has things first.
ADE20K_STUFF = (
    *(0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59),
    *(60, 61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145),
)


def things_first(classes: Tensor) -> Tensor:
    """Reorder the rows of a classifier of ADE20K's 150 classes, of which the last is for none: things, stuff, none."""
    things = [index for index in range(150) if index not in ADE20K_STUFF]
    return classes[[*things, *ADE20K_STUFF, 150]]
