"""The letters by which configurations say which blocks have the family's mixer and which softmax attention."""

import re
from collections.abc import Sequence
from typing import Any


def mixers_of_blocks(letters: str, depths: Sequence[int], mixers: Sequence[str]) -> list[list[str]]:
    """Return the mixer of every block of every stage, from one letter a stage, e.g. "LLSS" or "AAMB2".

    Args:
        letters: L, A or I for the stage's mixer in all blocks; S or B for softmax attention in all; M for the mixer in
            the first blocks, as many as the number after the letters says, and softmax attention in the others.
        depths: blocks of each stage.
        mixers: the mixer of each stage.

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
        for letter, depth, mixer in zip(found[1], depths, mixers, strict=True)
    ]


def of_each_stage(name: str, value: Any, kind: type, stages: int) -> list[Any]:
    """Return the argument `name` of each stage, from that of each or that of all.

    Args:
        value: one `kind`, or a sequence of one for each stage.

    Raises:
        ValueError: there are values of more or fewer stages, or of another kind.
    """
    if isinstance(value, kind):
        return [value] * stages
    each = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(each) != stages or not all(isinstance(one, kind) for one in each):
        wanted = "name" if kind is str else "mapping"
        raise ValueError(f"{name}={value!r} must be one {wanted}, or a sequence of one for each of {stages} stages")
    return each
