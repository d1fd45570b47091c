"""saccade: vision backbones whose token mixers are not plain softmax attention, registered with timm on import."""

__version__ = "0.1.0"
from .kernels.dispatch import backend, explain
