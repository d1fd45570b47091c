"""The toolboxes' figures under our names."""

import numpy as np

from saccade.tools.dense.figures import judge, name_figures, told


def test_figures_are_renamed_to_percent():
    coco = {"coco/bbox_mAP": 0.123, "coco/bbox_mAP_50": 0.4, "coco/bbox_mAP_l": -1.0, "coco/segm_mAP_75": 0.05}
    assert name_figures(coco) == {"box_ap": 12.3, "box_ap50": 40.0, "mask_ap75": 5.0}
    ade = {"aAcc": 81.66, "mIoU": np.float32(30.17), "mAcc": np.float64(37.01), "names": ["circle"]}
    assert name_figures(ade) == {"aacc": 81.66, "miou": 30.17, "macc": 37.01}
    assert name_figures({}) == {"box_ap": 0.0, "box_ap50": 0.0}, "COCO's evaluator is silent where nothing is found"


def test_the_best_checkpoint_is_by_the_task_s_first_figure():
    assert judge({"box_ap50": 90.0, "box_ap": 50.0, "mask_ap": 60.0}) == 50.0
    assert judge({"macc": 80.0, "miou": 70.0}) == 70.0
    assert told({"updates": 3, "miou": 70.0, "macc": 80.0, "aacc": 90.0}) == "mIoU 70.0  mean accuracy 80.0"
