"""`saccade benchmark`: times of our operators and models beside the alternatives, on whatever machine this is.

    saccade benchmark kernels op=large_kernel     an operator's table: ours, marks, torch eager and compiled
    saccade benchmark models                      our models beside timm's
    saccade benchmark accelerate                  timm's models as they are and accelerated
    saccade benchmark dense                       training Mask R-CNN and UPerNet (needs mmdet and mmseg)

`out=DIR` (default `benchmarks`) receives `<name>.json` with the versions, `<name>.csv`, `<name>.md` and `<name>.png`,
all but the picture after every row, so that nothing is lost where a run is cut short.
"""

from __future__ import annotations

from importlib import import_module

from ..errors import UserError, check_choice
from .report import show, write_rows
from .timing import call_seconds, device_time

SUBJECTS = {
    "kernels": ".kernels",
    "models": ".models",
    "accelerate": ".accelerate",
    "dense": "..dense.benchmark",
}


def main(words: list[str]) -> None:
    """Run from the command line.

    Errors:
        UserError: no subject is named, or a word is not one of its settings.
    """
    if not words or "=" in words[0]:
        raise UserError("saccade benchmark needs a subject: kernels op=neighborhood, models, accelerate or dense")
    subject = check_choice("subject", words[0], SUBJECTS)
    import_module(SUBJECTS[subject], __package__).main(words[1:])
