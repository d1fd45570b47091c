"""Published families, registered with timm on import."""

from . import nat, nat_isotropic
