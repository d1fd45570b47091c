"""Official detectors and segmentors come in whole, and say what does not fit."""

import re

import pytest
import timm
import torch

from saccade.tools.dense.importer import import_checkpoint
from saccade.tools.dense.mask2former_names import things_first
from saccade.tools.errors import UserError

from ...fill import golden_image, load_golden, official_state
from ...parity import load_file
from .toolbox_models import batch, build, settings_of

OFFICIAL = {
    "detection/mask_rcnn_nat_mini_3x": ("nat", "downstream_nat_mini_maskrcnn"),
    "detection/mask_rcnn_dinat_s_tiny_3x": ("nat", "downstream_dinat_s_tiny_maskrcnn"),
    "detection/retinanet_litv2_small_1x": ("litv2", "litv2_s_det_ws2_224"),
    "detection/mask_rcnn_focalnet_tiny_srf_fused_1x": ("focalnet", "focalnet_tiny_srf_det_224"),
    "segmentation/upernet_van_b0_160k": ("van", "van_b0_dense_224"),
    "segmentation/upernet_dinat_mini_160k": ("nat", "downstream_dinat_mini_upernet"),
    "segmentation/semantic_fpn_litv2_small_80k": ("litv2", "litv2_s_seg_200x264"),
}


def told(model):
    """What a model predicts, however unsure it is, as a list of tensors."""
    head = getattr(model, "roi_head", None) or getattr(model, "bbox_head", None)
    if head is not None:
        head.test_cfg.score_thr = 0.0
    sample = model.test_step(batch(model))[0]
    if "pred_sem_seg" in sample:
        return [sample.pred_sem_seg.data, sample.seg_logits.data]
    assert len(sample.pred_instances) > 0
    return [value for value in sample.pred_instances.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("recipe", OFFICIAL)
def test_official_file_loads_whole(recipe, tmp_path):
    """A file with the keys of the official backbone and of mmdet 2 or mmseg 0, its optimiser and its notes."""
    settings = settings_of(recipe, pretrained=False)
    torch.manual_seed(1)
    theirs = build(settings).eval()
    heads = {key: value for key, value in theirs.state_dict().items() if not key.startswith("backbone.")}
    backbone = official_state(load_golden(*OFFICIAL[recipe]))
    state = {f"backbone.{key}": value for key, value in backbone.items()} | heads
    file = tmp_path / "official.pth"
    meta = {"mmdet_version": "2.19.0", "CLASSES": ("person", "bicycle"), "seed": None, "epoch": 36}
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, file)

    torch.manual_seed(2)
    ours = build(settings).eval()
    report = import_checkpoint(ours, file)
    assert (report.missing, report.unused) == ([], [])
    assert len(report.loaded) == len(ours.state_dict())
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in heads.items())

    # The same backbone by the way of its classifiers, and with it the same predictions to the last bit.
    model, options = settings.model, settings.model.kwargs
    out_norms = {} if model.out_norms is False else {"out_norms": model.out_norms}
    features = load_file(model.name, file, {"state_dict": state}, features_only=True, **out_norms, **options)
    image = golden_image([64, 96], 2)
    with torch.no_grad():
        for got, true in zip(ours.backbone(image), features(image), strict=True):
            assert torch.equal(got, true)
        theirs.backbone.body.load_state_dict(features.state_dict())
        for got, true in zip(told(ours), told(theirs), strict=True):
            assert torch.equal(got, true)


def detectron2_names(layers: int = 6, decoders: int = 9) -> dict[str, str]:
    """Names in facebookresearch/Mask2Former's checkpoints, and those of the same tensors in mmdet's head."""
    names = {}

    def pair(theirs: str, ours: str, *leaves: str) -> None:
        names.update({f"{theirs}{leaf}": f"{ours}{leaf}" for leaf in leaves})

    both, pixels, predictor = ("weight", "bias"), "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
    for i in range(3):
        pair(f"{pixels}input_proj.{i}.0.", f"pixel_decoder.input_convs.{i}.conv.", *both)
        pair(f"{pixels}input_proj.{i}.1.", f"pixel_decoder.input_convs.{i}.gn.", *both)
    for i in range(layers):
        theirs, ours = f"{pixels}transformer.encoder.layers.{i}.", f"pixel_decoder.encoder.layers.{i}."
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            pair(f"{theirs}self_attn.{part}.", f"{ours}self_attn.{part}.", *both)
        pair(f"{theirs}norm1.", f"{ours}norms.0.", *both)
        pair(f"{theirs}norm2.", f"{ours}norms.1.", *both)
        pair(f"{theirs}linear1.", f"{ours}ffn.layers.0.0.", *both)
        pair(f"{theirs}linear2.", f"{ours}ffn.layers.1.", *both)
    names[f"{pixels}transformer.level_embed"] = "pixel_decoder.level_encoding.weight"
    pair(f"{pixels}adapter_1.", "pixel_decoder.lateral_convs.0.conv.", "weight")
    pair(f"{pixels}adapter_1.norm.", "pixel_decoder.lateral_convs.0.gn.", *both)
    pair(f"{pixels}layer_1.", "pixel_decoder.output_convs.0.conv.", "weight")
    pair(f"{pixels}layer_1.norm.", "pixel_decoder.output_convs.0.gn.", *both)
    pair(f"{pixels}mask_features.", "pixel_decoder.mask_feature.", *both)
    attention = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    for i in range(decoders):
        ours = f"transformer_decoder.layers.{i}."
        self_attention = f"{predictor}transformer_self_attention_layers.{i}."
        cross_attention = f"{predictor}transformer_cross_attention_layers.{i}."
        ffn = f"{predictor}transformer_ffn_layers.{i}."
        pair(f"{self_attention}self_attn.", f"{ours}self_attn.attn.", *attention)
        pair(f"{cross_attention}multihead_attn.", f"{ours}cross_attn.attn.", *attention)
        pair(f"{cross_attention}norm.", f"{ours}norms.0.", *both)
        pair(f"{self_attention}norm.", f"{ours}norms.1.", *both)
        pair(f"{ffn}norm.", f"{ours}norms.2.", *both)
        pair(f"{ffn}linear1.", f"{ours}ffn.layers.0.0.", *both)
        pair(f"{ffn}linear2.", f"{ours}ffn.layers.1.", *both)
    pair(f"{predictor}decoder_norm.", "transformer_decoder.post_norm.", *both)
    for part in ("query_feat", "query_embed", "level_embed"):
        pair(f"{predictor}{part}.", f"{part}.", "weight")
    pair(f"{predictor}class_embed.", "cls_embed.", *both)
    for i in range(3):
        pair(f"{predictor}mask_embed.layers.{i}.", f"mask_embed.{2 * i}.", *both)
    return names


@pytest.mark.parametrize(
    ("recipe", "head"),
    [
        ("detection/mask2former_dinat_large_coco_panoptic", "panoptic_head"),
        ("segmentation/mask2former_dinat_large_ade20k_160k", "decode_head"),
    ],
)
def test_mask2former_of_detectron2(recipe, head, tmp_path):
    settings = settings_of(recipe, name="nat_nano", pretrained=False, weights=None, kwargs={})
    theirs = build(settings)
    own = theirs.state_dict()
    model = {official: own[f"{head}.{name}"] for official, name in detectron2_names().items()}
    model |= {f"backbone.{key}": value for key, value in theirs.backbone.model.state_dict().items()}
    model["criterion.empty_weight"] = torch.ones(134)
    torch.save({"model": model, "iteration": 737499, "trainer": {}}, tmp_path / "official.pth")
    ours = build(settings)
    report = import_checkpoint(ours, tmp_path / "official.pth")
    assert (report.missing, report.unused) == ([], [])
    for key, value in ours.state_dict().items():
        assert torch.equal(value, own[key]), key


def dino_names(levels: int = 5, layers: int = 6) -> dict[str, str]:
    """Names in IDEA-Research/DINO's checkpoints, and those of the same tensors in mmdet's DINO."""
    names = {"transformer.level_embed": "level_embed"}

    def pair(theirs: str, ours: str, *leaves: str) -> None:
        names.update({f"{theirs}{leaf}": f"{ours}{leaf}" for leaf in leaves})

    both = ("weight", "bias")
    for i in range(levels):
        ours = f"neck.convs.{i}." if i < 4 else "neck.extra_convs.0."
        pair(f"input_proj.{i}.0.", f"{ours}conv.", *both)
        pair(f"input_proj.{i}.1.", f"{ours}gn.", *both)
    sampling = [
        f"{part}.{leaf}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for leaf in both
    ]
    for i in range(layers):
        theirs, ours = f"transformer.encoder.layers.{i}.", f"encoder.layers.{i}."
        pair(f"{theirs}self_attn.", f"{ours}self_attn.", *sampling)
        for a, b in {
            "norm1": "norms.0",
            "norm2": "norms.1",
            "linear1": "ffn.layers.0.0",
            "linear2": "ffn.layers.1",
        }.items():
            pair(f"{theirs}{a}.", f"{ours}{b}.", *both)
        theirs, ours = f"transformer.decoder.layers.{i}.", f"decoder.layers.{i}."
        pair(f"{theirs}cross_attn.", f"{ours}cross_attn.", *sampling)
        attention = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        pair(f"{theirs}self_attn.", f"{ours}self_attn.attn.", *attention)
        parts = {"norm1": "norms.1", "norm2": "norms.0", "norm3": "norms.2"}
        for a, b in {**parts, "linear1": "ffn.layers.0.0", "linear2": "ffn.layers.1"}.items():
            pair(f"{theirs}{a}.", f"{ours}{b}.", *both)
        pair(f"class_embed.{i}.", f"bbox_head.cls_branches.{i}.", *both)
        for j in range(3):
            pair(f"bbox_embed.{i}.layers.{j}.", f"bbox_head.reg_branches.{i}.{2 * j}.", *both)
    pair("transformer.enc_out_class_embed.", f"bbox_head.cls_branches.{layers}.", *both)
    for j in range(3):
        pair(f"transformer.enc_out_bbox_embed.layers.{j}.", f"bbox_head.reg_branches.{layers}.{2 * j}.", *both)
    pair("transformer.decoder.norm.", "decoder.norm.", *both)
    for j in range(2):
        pair(f"transformer.decoder.ref_point_head.layers.{j}.", f"decoder.ref_point_head.layers.{j}.", *both)
    pair("transformer.enc_output.", "memory_trans_fc.", *both)
    pair("transformer.enc_output_norm.", "memory_trans_norm.", *both)
    pair("transformer.tgt_embed.", "query_embedding.", "weight")
    pair("label_enc.", "dn_query_generator.label_embedding.", "weight")
    return names


def test_dino_of_idea(tmp_path):
    """With its classifiers that count by COCO's numbers, some of which no category has, and what it holds twice."""
    from mmdet.datasets import CocoDataset

    settings = settings_of("detection/dino_focalnet_large_fl4_fused_1x", name="focalnet_nano", pretrained=False)
    theirs = build(settings)
    own = theirs.state_dict()
    model = {official: own[name] for official, name in dino_names().items()}
    # The numbers of a few categories, as every file of COCO's annotations has them.
    numbers = {"person": 1, "stop sign": 13, "umbrella": 28, "cup": 47, "dining table": 67, "toothbrush": 90}
    for key, value in list(model.items()):
        if "class_embed" in key or key.startswith("label_enc"):
            rows = 92 if key.startswith("label_enc") else 91
            model[key] = torch.arange(rows * value[0].numel()).float().view(rows, *value.shape[1:])
            if key.startswith("class_embed"):
                model[f"transformer.decoder.{key}"] = model[key]
    model |= {f"backbone.0.{key}": value for key, value in theirs.backbone.model.state_dict().items()}
    torch.save({"model": model, "epoch": 11}, tmp_path / "official.pth")
    ours = build(settings)
    report = import_checkpoint(ours, tmp_path / "official.pth")
    assert (report.missing, report.unused) == ([], [])
    for official, name in dino_names().items():
        got = ours.state_dict()[name]
        if model[official].shape == got.shape:
            assert torch.equal(got, model[official]), name
        else:
            for category, number in numbers.items():
                index = CocoDataset.METAINFO["classes"].index(category)
                assert torch.equal(got[index], model[official][number]), (name, category)


def test_ade20k_panoptic_has_things_first(tmp_path):
    """detectron2 counts ADE20K's classes in their order, mmdet its things, then its stuff."""
    from mmdet.datasets.ade20k import ADE20KPanopticDataset
    from mmseg.datasets.ade import ADE20KDataset

    order = things_first(torch.arange(151)).tolist()
    assert sorted(order) == list(range(151)) and order[-1] == 150
    names = [name.split(",")[0].strip() for name in ADE20KPanopticDataset.METAINFO["classes"]]
    plain = [name.strip() for name in ADE20KDataset.METAINFO["classes"]]
    alike = sum(
        plain[index].split()[0] in name or name in plain[index] for index, name in zip(order, names, strict=False)
    )
    assert alike >= 135  # the rest are synonyms: tub and bathtub, sofa and couch
    assert [names[order.index(plain.index(name))] for name in ("wall", "sky", "person", "car", "flag")] == [
        *("wall", "sky", "person", "car", "flag")
    ]


@pytest.fixture(scope="module")
def small():
    """Settings of a small segmentor, and one whose weights are its file's."""
    settings = settings_of("segmentation/upernet_nat_tiny_160k", name="nat_nano", pretrained=False)
    return settings, build(settings)


def test_what_does_not_fit_is_told(small, tmp_path):
    settings, model = small
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    del state["module.decode_head.conv_seg.bias"]
    state["module.neck.convs.0.weight"] = torch.zeros(3)
    state["module.ema_decode_head_conv_seg_weight"] = torch.zeros(3)
    torch.save({"state_dict": state}, tmp_path / "mine.pth")
    report = import_checkpoint(build(settings), tmp_path / "mine.pth")
    assert (report.missing, report.unused) == (["decode_head.conv_seg.bias"], ["neck.convs.0.weight"])
    assert str(report) == (
        f"{tmp_path / 'mine.pth'}: loaded {len(report.loaded)} tensors; 1 are not in it and stay as they were: "
        "decode_head.conv_seg.bias; 1 of it were not used: neck.convs.0.weight"
    )


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (None, "no such file: {}"),
        (b"not weights", "{} cannot be read as weights: "),
        ([1, 2], "{} holds a list, not weights"),
        ("classifier", "{} holds no detector or segmentor: none of its keys starts with backbone."),
        ("other backbone", "{} does not fit backbone nat_nano: the state dict does not fit this NAT"),
        ("other classes", "{} does not fit this EncoderDecoder: decode_head.conv_seg.weight is [3, 512, 1, 1] there"),
    ],
)
def test_bad_files(small, checkpoint, message, tmp_path):
    _, model = small
    before = {key: value.clone() for key, value in model.state_dict().items()}
    file = tmp_path / "official.pth"
    if checkpoint == "classifier":
        checkpoint = {"state_dict": timm.create_model("nat_nano").state_dict()}
    elif checkpoint == "other backbone":
        checkpoint = {"backbone." + key: value for key, value in timm.create_model("van_nano").state_dict().items()}
    elif checkpoint == "other classes":
        checkpoint = model.state_dict() | {"decode_head.conv_seg.weight": torch.zeros(3, 512, 1, 1)}
    if isinstance(checkpoint, bytes):
        file.write_bytes(checkpoint)
    elif checkpoint is not None:
        torch.save(checkpoint, file)
    with pytest.raises(UserError, match="^" + re.escape(message.format(file))) as error:
        import_checkpoint(model, file)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
