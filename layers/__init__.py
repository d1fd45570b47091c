"""Modules that models are built from: token mixers, one a file, and the stems, norms and blocks around them."""

from functools import partial

from timm.layers import register_notrace_module

from .attention_core import AttentionCore
from .block import MixerBlock
from .care import CAREMixer
from .conditional_position import ConditionalPosition
from .conv_mlp import ConvMLP, ResidualConvMLP
from .cross_shaped import CrossShapedAttention
from .deformable_merging import DeformableMerging
from .depthwise import DepthwiseConv2d
from .downsample import ConvActDownsample, ConvDownsample, NormPatchDownsample, PatchDownsample, PatchMerging
from .focal_modulation import FocalModulation
from .gated import GatedMixer, build_gated_mixer
from .gated_linear import GatedLinearAttention
from .global_attention import GlobalAttention
from .hilo import HiLo
from .initialization import fan_out_normal_
from .large_kernel_attention import LargeKernelAttention
from .lightnet import LightNetAttention
from .local_concentration import LocalConcentration
from .mixers import MIXERS, build_mixer, check_mixer, mixer_parameters, register_mixer, takes_tokens
from .mlp import Mlp
from .neighborhood import NeighborhoodAttention
from .norm import BatchNorm, RMSNorm
from .position import PositionTable, TokenPosition, resize_bias_table
from .qkv import CORES, QKVMixer, QKVReducedMixer, build_core, build_qkv_mixer
from .soft import SoftmaxFreeAttention
from .stem import ConvStem, ConvTokenizer, PatchStem
from .window_attention import WindowAttention

# Further names: for a shell around an attention core, and for a mixer of which something is settled.
MIXERS |= {
    "agent": partial(build_qkv_mixer, "agent"),
    "cosine": partial(build_qkv_mixer, "cosine"),
    "dina": partial(NeighborhoodAttention, dilation=None),
    "efficient": partial(build_qkv_mixer, "efficient"),
    "focused": partial(build_qkv_mixer, "focused"),
    "hedgehog": partial(build_qkv_mixer, "hedgehog"),
    "inline": partial(build_qkv_mixer, "inline"),
    "l2": partial(build_qkv_mixer, "l2"),
    "mala": partial(build_gated_mixer, "mala"),
    "nala": partial(build_gated_mixer, "nala", gate="silu", normed=True),
    "performer": partial(build_qkv_mixer, "performer"),
    "rala": partial(build_gated_mixer, "rala"),
    "rotary_softmax": partial(build_gated_mixer, "rotary_softmax"),
    "sigmoid": partial(build_qkv_mixer, "sigmoid"),
    "softmax": partial(build_qkv_mixer, "softmax"),
    "transnormer": partial(build_qkv_mixer, "transnormer", qkv_bias=False),
    "transnormer_v2": partial(build_gated_mixer, "transnormer", gate="silu", kernel_size=None, value_act=True),
}

# What these do depends on sizes, so symbolic tracing (timm's feature_cls="fx") keeps them whole.
_parts = (
    BatchNorm,
    ConvMLP,
    DeformableMerging,
    DepthwiseConv2d,
    GatedMixer,
    PatchDownsample,
    PatchMerging,
    PatchStem,
    PositionTable,
    QKVMixer,
    QKVReducedMixer,
    ResidualConvMLP,
)
for _module in _parts:
    register_notrace_module(_module)
