"""Focal modulation over torch's convolutions, which read channels-last maps as they are; see `depthwise.blocked`."""

from functools import partial

from ..depthwise import blocked as depthwise_blocked
from . import reference
from .reference import unsupported

__all__ = ["backward", "forward", "unsupported"]

forward = partial(reference.forward, depthwise=depthwise_blocked)
backward = partial(reference.backward, depthwise=depthwise_blocked)
