"""What a family may vary in the four-stage body, on bodies made for these tests alone."""

import pytest
import torch
from timm.layers import Mlp
from timm.optim import param_groups_layer_decay
from torch import nn

from saccade.layers import BatchNorm, ConvDownsample, ConvTokenizer, build_mixer
from saccade.models.pyramid import Pyramid

DIMS, DEPTHS = (8, 16, 24, 32), (1, 2, 1, 1)


def build(mixers=(True,) * 4, **kwargs):
    def mixer(stage, index, dim):
        return build_mixer("na", dim, 2, window=3) if mixers[stage] else None

    def mlp(stage, dim):
        return Mlp(dim, (stage + 1) * dim)

    torch.manual_seed(0)
    return Pyramid(DIMS, DEPTHS, ConvTokenizer, ConvDownsample, mixer, mlp, num_classes=5, **kwargs)


IMAGE = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


def test_stages_without_a_mixer():
    model = build(mixers=(False, False, True, True))
    assert model(IMAGE).shape == (2, 5)
    keys = list(model.state_dict())
    assert not [key for key in keys if key.startswith(("stages.0.", "stages.1.")) and "mixer" in key]
    assert "stages.2.blocks.0.mixer.qkv.weight" in keys


def test_mlp_of_each_stage():
    widths = [stage.blocks[0].mlp.fc1.out_features for stage in build().stages]
    assert widths == [8, 32, 72, 128]


def test_layer_scale_of_each_stage():
    model = build(layer_scale=(0.5, None, 0.25, 0.125))
    first = [stage.blocks[0] for stage in model.stages]
    assert isinstance(first[1].ls1, nn.Identity)
    assert [block.ls2.gamma[0].item() for block in (first[0], first[2], first[3])] == [0.5, 0.25, 0.125]


def test_batch_norm_in_the_blocks_and_a_norm_after_each_stage():
    model = build(norm=BatchNorm, stage_norm=nn.LayerNorm, final_norm=nn.Identity)
    assert isinstance(model.stages[2].blocks[0].norm2, BatchNorm)
    final, maps = model.forward_intermediates(IMAGE)
    for value in maps:
        torch.testing.assert_close(value.mean(1), torch.zeros_like(value.mean(1)), atol=1e-5, rtol=0)
    assert torch.equal(final.permute(0, 3, 1, 2), maps[-1])


def test_post_norm():
    assert all(block.post_norm for stage in build(post_norm=True).stages for block in stage.blocks)


def test_norm_of_a_stage_decays_with_its_blocks():
    model = build(stage_norm=nn.LayerNorm)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    order = ["stem.conv1", "stages.0.blocks.0.norm1", "stages.0.norm", "stages.1.downsample.norm"]
    order += ["stages.1.blocks.1.norm1", "stages.1.norm", "stages.3.norm", "norm", "head.fc"]
    scales = [scale[f"{name}.weight"] for name in order]
    assert scales == sorted(scales)
    assert scale["stages.1.downsample.norm.weight"] == scale["stages.1.blocks.0.norm1.weight"]


def test_output_norms_touch_only_what_is_returned():
    plain, normed = build().eval(), build(out_norms=True).eval()
    normed.load_state_dict(plain.state_dict(), strict=False)
    nn.init.constant_(normed.out_norms[1].bias, 3)
    torch.testing.assert_close(normed(IMAGE), plain(IMAGE))
    expected = plain.forward_intermediates(IMAGE, intermediates_only=True)
    maps = normed.forward_intermediates(IMAGE, intermediates_only=True)
    for index, (value, reference) in enumerate(zip(maps, expected, strict=True)):
        with torch.no_grad():
            torch.testing.assert_close(value, normed.out_norms[index](reference.movedim(1, -1)).movedim(-1, 1))
    assert normed.prune_intermediate_layers([1, 2]) == [1, 2]
    assert [name for name, _ in normed.named_parameters() if name.startswith("out_norms")] == [
        "out_norms.1.weight",
        "out_norms.1.bias",
        "out_norms.2.weight",
        "out_norms.2.bias",
    ]
    assert (normed.num_features, normed.num_classes) == (24, 0)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"dims=\(8, 16\) and depths=\(1, 1, 1\) must be of one length"):
        Pyramid((8, 16), (1, 1, 1), ConvTokenizer, ConvDownsample, lambda *_: None, lambda _, dim: Mlp(dim))
