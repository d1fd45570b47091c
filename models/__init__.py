"""Published families, registered with timm on import."""

from . import (
    agent,
    any_mixer,
    care,
    flatten,
    focalnet,
    focalnet_isotropic,
    inline,
    l2vit,
    litv2,
    mavit,
    nalaformer,
    nat,
    nat_isotropic,
    ravlt,
    soft,
    van,
    vig,
)
