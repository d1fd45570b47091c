"""How IDEA's DINO, and FocalNet-DINO after it, names what mmdet's DINO has (IDEA-Research/DINO)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...models.checkpoint import rename

DINO = "transformer.encoder."

_ENCODER = r"^(encoder\.layers\.\d+)\."
_DECODER = r"^(decoder\.layers\.\d+)\."

# Patterns and replacements of re.sub, applied one after the other.
DINO_NAMES = [
    (r"^transformer\.(encoder|decoder)\.layers\.", r"\1.layers."),
    (_ENCODER + r"norm([12])\.", lambda match: f"{match[1]}.norms.{int(match[2]) - 1}."),
    # mmdet counts norms in the order in which they are used: after attention among queries, to the image, and the FFN.
    (_DECODER + r"norm2\.", r"\1.norms.0."),
    (_DECODER + r"norm1\.", r"\1.norms.1."),
    (_DECODER + r"norm3\.", r"\1.norms.2."),
    (_DECODER + r"self_attn\.", r"\1.self_attn.attn."),
    (r"^((?:encoder|decoder)\.layers\.\d+)\.linear1\.", r"\1.ffn.layers.0.0."),
    (r"^((?:encoder|decoder)\.layers\.\d+)\.linear2\.", r"\1.ffn.layers.1."),
    (r"^transformer\.decoder\.(norm|ref_point_head)\.", r"decoder.\1."),
    (r"^transformer\.level_embed$", "level_embed"),
    (r"^transformer\.tgt_embed\.", "query_embedding."),
    (r"^transformer\.enc_output\.", "memory_trans_fc."),
    (r"^transformer\.enc_output_norm\.", "memory_trans_norm."),
    # The encoder's own classifier and boxes come after those of the decoder's six layers.
    (r"^transformer\.enc_out_class_embed\.", "class_embed.6."),
    (r"^transformer\.enc_out_bbox_embed\.", "bbox_embed.6."),
    (r"^class_embed\.", "bbox_head.cls_branches."),
    (r"^bbox_embed\.(\d+)\.layers\.(\d)\.", lambda match: f"bbox_head.reg_branches.{match[1]}.{2 * int(match[2])}."),
    (r"^label_enc\.", "dn_query_generator.label_embedding."),
]
# Modules that stand in the files twice.
SHARED = ("transformer.decoder.class_embed.", "transformer.decoder.bbox_embed.")
# COCO's 80 categories have numbers up to 90, which the official classifiers count by.
COCO_NUMBERS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def dino_state(state: Mapping[str, Tensor], maps: int, classes: int) -> dict[str, Tensor]:
    """Return neck and heads of an official DINO in mmdet's names.

    Args:
        maps: how many maps the backbone has; the neck makes the further ones from the last.
        classes: how many the model tells apart; of a file that counts by COCO's numbers, its 80 are taken.
    """
    out = {}
    for key, value in rename({k: v for k, v in state.items() if not k.startswith(SHARED)}, DINO_NAMES).items():
        if key.startswith("input_proj."):
            _, level, part, leaf = key.split(".")
            place = f"convs.{level}" if int(level) < maps else f"extra_convs.{int(level) - maps}"
            key = f"neck.{place}.{'gn' if int(part) else 'conv'}.{leaf}"
        if key.startswith(("bbox_head.cls_branches.", "dn_query_generator.")) and len(value) > 90 and classes == 80:
            value = value[COCO_NUMBERS]
        out[key] = value
    return out
