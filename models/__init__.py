"""Published families, registered with timm on import."""

from . import focalnet, focalnet_isotropic, nat, nat_isotropic, van
