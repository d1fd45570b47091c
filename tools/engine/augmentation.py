"""What is done to pictures: timm's transforms image by image, its erasing and mixing batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import Mixup, create_transform
from timm.data.auto_augment import NAME_TO_OP
from timm.data.random_erasing import RandomErasing

from ..errors import UserError
from .seeding import BATCH, derive_seed, generators_kept, seed_generators
from .settings import Augment

Batch = tuple[torch.Tensor, torch.Tensor]


def posterize(picture: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Keep the highest bits of every channel; with none kept the picture is black.

    timm's RandAugment asks for none at its strongest, which Pillow answers with an error since version 13.
    """
    return ImageOps.posterize(picture, bits_to_keep) if bits_to_keep else Image.new(picture.mode, picture.size)


NAME_TO_OP.update({name: posterize for name in NAME_TO_OP if name.startswith("Posterize")})


class BatchAugmentation:
    """Random erasing and mixup/cutmix on a whole batch, on its device."""

    def __init__(
        self, augment: Augment, num_classes: int, seed: int, micro_batch: int, rank: int, device: torch.device
    ):
        self.seed, self.rank, self.device = seed, rank, device
        self.erase = self.mix = None
        if augment.erase_prob > 0:
            self.erase = RandomErasing(
                augment.erase_prob, mode=augment.erase_mode, max_count=augment.erase_count, device=device
            )
        if augment.mixup > 0 or augment.cutmix > 0:
            if micro_batch % 2:
                raise UserError(
                    f"augment.mixup={augment.mixup:g}, augment.cutmix={augment.cutmix:g}: images are mixed in pairs, "
                    f"but a process sees {micro_batch} at a time; change batch_size or set both to 0"
                )
            self.mix = Mixup(
                augment.mixup,
                augment.cutmix,
                prob=augment.mix_prob,
                switch_prob=augment.mix_switch_prob,
                mode=augment.mix_mode,
                label_smoothing=augment.label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, images: torch.Tensor, targets: torch.Tensor, epoch: int, position: int) -> Batch:
        """Augment the batch that is the `position`-th of this process in the epoch; `images` may be overwritten."""
        if self.erase is None and self.mix is None:
            return images, targets
        with generators_kept(self.device):
            derived = derive_seed(self.seed, BATCH, epoch, position, self.rank)
            seed_generators(derived)
            if self.device.type == "cuda":
                torch.cuda.manual_seed(derived % 2**63)
            if self.erase is not None:
                images = self.erase(images)
            return (images, targets) if self.mix is None else self.mix(images, targets)


def training_transform(augment: Augment, data_config: dict[str, Any]) -> Any:
    """timm's training transform, ending in bytes."""
    try:
        return create_transform(
            data_config["input_size"],
            is_training=True,
            use_prefetcher=True,
            scale=tuple(augment.scale),
            ratio=tuple(augment.ratio),
            hflip=augment.hflip,
            vflip=augment.vflip,
            color_jitter=augment.color_jitter,
            auto_augment=augment.auto_augment,
            interpolation=augment.interpolation,
            mean=data_config["mean"],
            std=data_config["std"],
        )
    except (AssertionError, ValueError) as error:
        raise UserError(f"augment.auto_augment={augment.auto_augment} is not valid: {error}") from error


def evaluation_transform(data_config: dict[str, Any]) -> Any:
    """timm's evaluation transform, ending in bytes."""
    return create_transform(
        data_config["input_size"],
        use_prefetcher=True,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config["crop_mode"],
    )
