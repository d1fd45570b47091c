"""Any model of timm's registry as a backbone of mmdet and mmseg: `type="saccade.Backbone", name="nat_tiny"`.

A plain module: it imports none of the toolboxes, `saccade.registry` makes them find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from timm.layers import LayerNorm2d, convert_sync_batchnorm
from timm.models import get_pretrained_cfg, group_modules, is_model, split_model_name_tag
from torch import Tensor, nn

from ... import list_models
from ...layers.norm import BatchNorm, synchronize
from ..engine.modeling import brief, check_model_name
from ..errors import UserError

STRIDES = (4, 8, 16, 32)
# Models made for one size are told to take any; those that can return what their stages give do so as NCHW maps.
WAYS = tuple(
    {**getter, **any_size}
    for getter in ({"feature_cls": "getter"}, {})
    for any_size in ({"strict_img_size": False}, {"dynamic_img_size": True, "dynamic_img_pad": True}, {})
)


class Backbone(nn.Module):
    """Feature maps of a model: [B, 3, H, W] of any size -> a tuple of NCHW maps.

    Args:
        name: a name of timm's registry, saccade's models included, with or without a pretrained tag.
        pretrained: where `init_weights` takes the weights from: True for the released ones, a file of any make the
            model's family can read, released weights of another model (name.tag), or False for none.
        out_indices: features to return, as `features_only` counts them; None for those at strides 4, 8, 16 and 32.
        out_norms: a LayerNorm on each map, or on the features of these indices, that an ImageNet classifier does not
            have; the papers' choice is True for NAT, DiNAT, FocalNet and Swin, none for VAN, whose stages end in a
            norm, and for LITv2 True (segmentation) or (1, 2, 3) (detection).
        frozen_stages: stem (0) and this many stages that do not learn; -1 for none.
        drop_path_rate: None for the model's own.
        with_cp: recompute blocks in the backward pass instead of keeping their activations.
        norm_eval: keep batch norms in evaluation mode.
        sync_norms: batch norms over the images of all processes; for GPUs only.
        size_divisor: zero-pad images at the bottom and right to multiples of this, and crop the maps, for models that
            take no other sizes: 32 for HRNet and DLA. Saccade's take any.
        kwargs: anything else `timm.create_model` takes for this model, e.g. `dilations`.

    Raises:
        UserError: an argument has a value that does not fit; the message says what would.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
        out_indices: Sequence[int] | None = None,
        out_norms: bool | Sequence[int] = False,
        frozen_stages: int = -1,
        drop_path_rate: float | None = None,
        with_cp: bool = False,
        norm_eval: bool = False,
        sync_norms: bool = False,
        size_divisor: int = 1,
        **kwargs: Any,
    ):
        super().__init__()
        check_model_name(name)
        _check_source(pretrained)
        if size_divisor < 1:
            raise UserError(f"size_divisor={size_divisor} is not valid: it must be at least 1")
        self.name, self.pretrained, self.norm_eval, self.size_divisor = name, pretrained, norm_eval, size_divisor
        if drop_path_rate is not None:
            kwargs["drop_path_rate"] = drop_path_rate
        own_norms = name.split(".")[0] in list_models() and out_norms is not False
        self._options = {**kwargs, "out_norms": out_norms} if own_norms else kwargs
        self._ways: Sequence[dict[str, Any]] = WAYS
        self.body = self._build(out_indices)
        taken = self.body.feature_info.out_indices
        if out_indices is None:
            strides = dict(zip(self.body.feature_info.reduction(), taken, strict=True))  # the last map of each stride
            chosen = tuple(strides[stride] for stride in STRIDES if stride in strides) or tuple(taken)
            if chosen != tuple(taken):
                self.body = self._build(chosen)
        self.out_indices = tuple(self.body.feature_info.out_indices)
        self.channels: list[int] = self.body.feature_info.channels()
        self.strides: list[int] = self.body.feature_info.reduction()
        normed = self.out_indices if out_norms is True else tuple(out_norms or ())
        if not set(normed) <= set(self.out_indices) and not own_norms:
            raise UserError(f"out_norms={out_norms} is not valid: it must be a bool or among {self.out_indices}")
        self.norms = nn.ModuleList(
            LayerNorm2d(channels) if index in normed and not own_norms else nn.Identity()
            for index, channels in zip(self.out_indices, self.channels, strict=True)
        )
        if with_cp:
            if not hasattr(self.model, "set_grad_checkpointing"):
                raise UserError(f"with_cp=True is not valid: {name} has no gradient checkpointing")
            self.model.set_grad_checkpointing(True)
        if sync_norms:
            ours = any(isinstance(module, BatchNorm) for module in self.modules())
            synchronize(self.body) if ours else convert_sync_batchnorm(self.body)
        self._frozen = self._freeze(frozen_stages)

    @property
    def model(self) -> nn.Module:
        """The model inside, as its family's `checkpoint_filter_fn` takes it."""
        return _inside(self.body)

    def _build(self, out_indices: Sequence[int] | None, **weights: Any) -> nn.Module:
        options = {"features_only": True, **self._options, **weights}
        if out_indices is not None:
            options["out_indices"] = tuple(out_indices)
        try:
            body, self._ways = _create(self.name, options, self._ways)
            return body
        except (TypeError, ValueError, AssertionError, IndexError, AttributeError, RuntimeError, OSError) as error:
            said = f"pretrained={self.pretrained}" if weights else f"out_indices={out_indices}, {self._options}"
            raise UserError(f"name={self.name}, {said}: {brief(error.__cause__ or error)}") from error

    def _freeze(self, stages: int) -> list[nn.Module]:
        """Stop the stem and the first stages from learning; return the modules all of whose parameters are among them.

        Stages are counted as timm's coarse parameter groups are: the stem is group 0.
        """
        if stages < 0:
            return []
        if not hasattr(self.model, "group_matcher"):
            raise UserError(f"frozen_stages={stages} is not valid: {self.name} does not say what its stages are")
        groups = group_modules(self.model, self.model.group_matcher(coarse=True))
        if stages >= len(groups):
            raise UserError(f"frozen_stages={stages} is not valid: {self.name} has {len(groups) - 1} stages here")
        for group, names in groups.items():
            for name in names if group <= stages else ():
                for parameter in self.model.get_submodule(name).parameters(recurse=False):
                    parameter.requires_grad_(False)
        parameters = {module: list(module.parameters()) for module in self.model.modules()}
        return [
            module
            for module, own in parameters.items()
            if own and not any(parameter.requires_grad for parameter in own)
        ]

    def init_weights(self) -> None:
        """Load the weights that `pretrained` names; what they lack, such as norms of the outputs, stays fresh.

        Raises:
            UserError: they cannot be had, or do not fit.
        """
        if not self.pretrained:
            return
        if self.pretrained is True:
            weights: dict[str, Any] = {}
        elif Path(self.pretrained).is_file():
            weights = {"pretrained_cfg_overlay": {"file": str(self.pretrained)}}
        else:
            weights = {"pretrained_cfg": get_pretrained_cfg(self.pretrained)}
        loaded = self._build(self.out_indices, pretrained=True, **weights)
        self.body.load_state_dict(loaded.state_dict())

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] -> one map [B, C, h, w] for each of `out_indices`."""
        height, width = x.shape[2:]
        if self.size_divisor > 1:
            x = nn.functional.pad(x, (0, -width % self.size_divisor, 0, -height % self.size_divisor))
        maps = []
        for feature, norm, stride in zip(self.body(x), self.norms, self.strides, strict=True):
            if self.size_divisor > 1:
                feature = feature[:, :, : -(-height // stride), : -(-width // stride)]
            # mmcv's operators (RoIAlign) read any memory as contiguous NCHW, whatever its strides say.
            maps.append(norm(feature).contiguous())
        return tuple(maps)


def _create(
    name: str, options: dict[str, Any], ways: Sequence[dict[str, Any]]
) -> tuple[nn.Module, Sequence[dict[str, Any]]]:
    """Build in the first of `ways` that the model knows; return that way too."""
    for way in ways:
        try:
            body = timm.create_model(name, **way, **options)
        except TypeError as error:
            if any(option in str(error) for option in way):
                continue
            raise
        if "feature_cls" not in way or hasattr(_inside(body), "forward_intermediates"):
            return body, [way]
    raise ValueError("the model has no features")


def _inside(body: nn.Module) -> nn.Module:
    """Return the model whose features `body` returns: itself, of a kind that needs no wrapper."""
    return getattr(body, "model", body)


def _check_source(pretrained: bool | str) -> None:
    if isinstance(pretrained, bool) or Path(pretrained).is_file():
        return
    name, tag = split_model_name_tag(str(pretrained))
    if not (tag and is_model(name)):
        raise UserError(
            f"pretrained={pretrained} is not valid: it must be True, False, a file there is, or released weights "
            "(name.tag)"
        )
    check_model_name(str(pretrained))
