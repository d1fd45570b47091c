"""The letters by which configurations say which blocks have the family's mixer and which softmax attention."""

import re
from collections.abc import Mapping, Sequence
from typing import Any


def mixers_of_blocks(letters: str, depths: Sequence[int], mixer: str) -> list[list[str]]:
    """Return the mixer of every block of every stage, from one letter a stage, e.g. "LLSS" or "AAMB2".

    Args:
        letters: L, A or I for `mixer` in all blocks; S or B for softmax attention in all; M for `mixer` in the first
            blocks, as many as the number after the letters says, and softmax attention in the others.
        depths: blocks of each stage.

    Raises:
        ValueError: other letters, not one a stage, or an M without a number.

    Source: `attn_type` of the three repositories of LeapLabTHU.
    """
    found = re.fullmatch(r"([LAISBM]+)(\d*)", letters)
    if not found or len(found[1]) != len(depths) or ("M" in letters and not found[2]):
        raise ValueError(
            f"attn_type={letters!r} must be {len(depths)} letters, one a stage, of L, A, I (mixer), S, B (softmax) and "
            "M (mixed), with a number after them that says how many blocks of M have the mixer"
        )
    counts = {"M": int(found[2] or 0), "S": 0, "B": 0}
    return [
        [mixer if index < counts.get(letter, depth) else "softmax" for index in range(depth)]
        for letter, depth in zip(found[1], depths, strict=True)
    ]


def of_each_stage(options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, stages: int) -> list[dict[str, Any]]:
    """Return the mixer's options of each stage, from those of each or those of all.

    Raises:
        ValueError: there are options of more or fewer stages.
    """
    if options is None or isinstance(options, Mapping):
        return [dict(options or {}) for _ in range(stages)]
    if len(options) != stages:
        raise ValueError(f"mixer_options={list(options)} must be one mapping, or one for each of {stages} stages")
    return [dict(stage) for stage in options]
