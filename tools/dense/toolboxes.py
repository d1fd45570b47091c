"""Whether mmdet and mmseg are there: detection and segmentation need them, nothing else does."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import UserError

# import name -> distribution; the maintained forks of OpenMMLab's toolboxes
PACKAGES = {
    "mmengine": "onedl-mmengine",
    "mmcv": "onedl-mmcv",
    "mmdet": "onedl-mmdetection",
    "mmseg": "onedl-mmsegmentation",
}


def check_toolboxes() -> None:
    """Raise unless the toolboxes are installed, with mmcv's compiled operators.

    Errors:
        UserError: what is missing, and the command that installs it.
    """
    missing = [package for name, package in PACKAGES.items() if find_spec(name) is None]
    if not missing and find_spec("mmcv._ext") is None:
        missing = ["the compiled operators of onedl-mmcv"]
    if missing:
        raise UserError(
            f"detection and segmentation need {', '.join(missing)}: make dense in saccade's checkout installs them "
            "(it compiles mmcv's operators, about 10 minutes on 2 cores)"
        )
