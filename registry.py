"""Where OpenMMLab's toolboxes look up types of the scope `saccade`, such as `saccade.Backbone`; needs mmengine.

mmengine imports this module by itself when a config names such a type, so a config needs no `custom_imports`.
"""

from importlib.util import find_spec

from mmengine.registry import MODELS as ALL_MODELS
from mmengine.registry import Registry

from .tools.dense.backbone import Backbone

MODELS = Registry("model", parent=ALL_MODELS, scope="saccade")
MODELS.register_module(module=Backbone)

if find_spec("mmdet") is not None:
    from .tools.dense.roi_extractor import SingleRoIExtractor

    MODELS.register_module(module=SingleRoIExtractor)
