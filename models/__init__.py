"""Published families, registered with timm on import."""

from . import focalnet, focalnet_isotropic, litv2, nat, nat_isotropic, van
