"""What every backbone offers: timm's contract, written once for bodies of a stem, a trunk, a norm and a head."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import ClassifierHead, trunc_normal_
from timm.models import build_model_with_cfg, load_state_dict, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..layers import MixerBlock
from .checkpoint import how_to_load, readable


class Backbone(nn.Module):
    """Base of all bodies: `stem`, a trunk of steps, `norm`, `head`, on channels-last maps [B, H, W, C].

    A body calls `__init__`, builds `stem`, its trunk (an nn.Sequential, called as `trunk` says) and one `feature_info`
    entry for each step of the trunk, then calls `finish`.
    """

    trunk: str
    """Name of the nn.Sequential whose steps' outputs are the features."""

    feature_indices: tuple[int, ...]
    """Steps that `features_only` returns unless told."""

    output_fmt = "NHWC"

    def __init__(self, in_chans: int, num_classes: int, global_pool: str):
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.feature_info: list[dict[str, Any]] = []

    def finish(self, norm: nn.Module, drop_rate: float) -> None:
        """Add the final norm and the classifier; initialise linear weights truncated normal of std 0.02, biases 0.

        A final norm that changes the number of channels says so by an attribute `out_features`.
        """
        self.num_features = getattr(norm, "out_features", self.feature_info[-1]["num_chs"])
        self.norm = norm
        self.head = self.build_head(drop_rate)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()
        self.apply(_init_linear)

    def build_head(self, drop_rate: float) -> ClassifierHead:
        """Return the pooling and the classifier."""
        return ClassifierHead(
            self.num_features, self.num_classes, pool_type=self.global_pool, drop_rate=drop_rate, input_fmt="NHWC"
        )

    @property
    def steps(self) -> nn.Sequential:
        """The trunk."""
        return getattr(self, self.trunk)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> normed map [B, h, w, num_features]."""
        x, context = self.embed(x)
        for step in self.steps:
            x = step(x, *context)
        return self.norm(x)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the trunk's input, and what its steps are called with besides."""
        return self.stem(x), ()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normed map -> logits [B, num_classes], or pooled features [B, head_hidden_size] with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def intermediate(self, x: Tensor, index: int, norm: bool, *context: Any) -> Tensor:
        """Return the map of step `index` of the trunk from its output; `norm` asks for the final norm."""
        return self.norm(x) if norm else x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final map and the outputs of chosen steps of the trunk.

        Args:
            indices: steps to return; an int asks for the last n, None for all.
            norm: apply the final norm to those it fits.
            stop_early: run no step beyond the last one asked for.
            output_fmt: layout of the intermediates: "NCHW" (a channels_last view, no copy) or "NHWC".
            intermediates_only: return the list alone.

        Raises:
            ValueError: another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r} must be 'NCHW' or 'NHWC'")
        steps = self.steps
        taken, last = feature_take_indices(len(steps), indices)
        intermediates = []
        x, context = self.embed(x)
        ran = steps[: last + 1] if stop_early or intermediates_only else steps
        for index, step in enumerate(ran):
            x = step(x, *context)
            if index in taken:
                feature = self.intermediate(x, index, norm, *context)
                intermediates.append(feature.permute(0, 3, 1, 2) if output_fmt == "NCHW" else feature)
        if intermediates_only:
            return intermediates
        # The final norm is made for the last step's output.
        return (self.norm(x) if len(ran) == len(self.feature_info) else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the steps after the last one in `indices`, the final norm and the head, as asked; return the indices."""
        taken, last = feature_take_indices(len(self.steps), indices)
        shorter = last + 1 < len(self.steps)
        setattr(self, self.trunk, self.steps[: last + 1])
        if prune_norm or shorter:
            self.norm = nn.Identity()
            self.num_features = self.head.in_features = self.feature_info[last]["num_chs"]
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the classifier, an nn.Linear (nn.Identity with no classes)."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one for `num_classes`, 0 for none, and the pooling if one is named."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.global_pool = self.head.global_pool.pool_type
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if isinstance(module, MixerBlock):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters to exempt from weight decay besides one-dimensional ones."""
        return set()


def _init_linear(module: nn.Module) -> None:
    # On the meta device there is nothing to fill, and not trying makes counting and listing models twice as fast.
    if isinstance(module, nn.Linear) and not module.weight.is_meta:
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_backbone(
    cls: type[Backbone],
    variant: str,
    pretrained: bool,
    filter_fn: Callable[..., dict],
    averaged: bool = True,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered model through timm, with features from `forward_intermediates` when `features_only`.

    Args:
        averaged: take the averaged weights of a file that holds those and the trained ones; what is published of a
            family says which were evaluated.

    Raises:
        FileNotFoundError: the weight file named in `pretrained_cfg_overlay` does not exist.
        ValueError: it exists but cannot be read, or does not fit the model; or `feature_cls` is one that runs a trunk
            without its class token.
        RuntimeError: there are no weights to download; the message says where they are.
    """
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    if pretrained and cfg.notes and not (cfg.has_weights or cfg.state_dict):
        why = "; ".join(cfg.notes)
        raise RuntimeError(f"there are no weights of {variant} to download: {why}; with a file, {how_to_load(variant)}")
    feature_cls = kwargs.get("feature_cls", "getter")
    if kwargs.get("features_only") and cls.output_fmt == "NLC" and feature_cls not in ("getter", "fx"):
        raise ValueError(f"feature_cls={feature_cls!r} must be 'getter' or 'fx' for {variant}, which has a class token")
    overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
    file = overlay.get("file") if pretrained else None
    if file and not os.path.isfile(file):
        raise FileNotFoundError(f"no checkpoint file {str(file)!r} to load into {variant}")
    try:
        with readable():
            if file and not averaged:
                overlay = {**overlay, "state_dict": load_state_dict(file, use_ema=False)}
            model = build_model_with_cfg(
                cls,
                variant,
                pretrained,
                pretrained_cfg_overlay=overlay,
                pretrained_filter_fn=filter_fn,
                feature_cfg={"out_indices": cls.feature_indices, "feature_cls": "getter", "flatten_sequential": True},
                **kwargs,
            )
    except Exception as error:
        if file:
            raise ValueError(f"cannot build {variant} with the checkpoint {str(file)!r}: {error}") from error
        raise
    for part in (model, getattr(model, "model", model)):
        part.pretrained_cfg.pop("state_dict", None)
    return model
