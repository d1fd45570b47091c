"""Which keys a query attends to: the neighborhood of NATTEN 0.21, one axis at a time.

Along an axis of length L with dilation d, token i is in group r = i mod d at place g = i // d; the ceil((L - r) / d)
tokens of a group attend only to each other. Queries that share g // stride share the window of their leader.
"""

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a call: its length in tokens, and the neighborhood along it in group places."""

    length: int
    window: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False

    def group_length(self, residue: int) -> int:
        """Return the number of tokens i with i mod dilation == residue."""
        return (self.length - residue + self.dilation - 1) // self.dilation

    def bounds(self, place: int, n: int) -> tuple[int, int]:
        """Return the first key place and one past the last for the query at `place` in a group of `n` tokens.

        A window never leaves the map: at the borders it slides inward, so that every query sees `window` keys. A causal
        window ends at the query and is cut off at the start of the map.
        """
        group_start = place // self.stride * self.stride
        if self.causal:
            leader = min(group_start + self.stride - 1, n - 1)
            return max(leader - self.window + 1, 0), place + 1
        leader = min(group_start + self.stride // 2, n - 1)
        first = min(max(leader - self.window // 2, 0), n - self.window)
        return first, first + self.window


@dataclass(frozen=True)
class Geometry:
    """The neighborhood of a call: one `Axis` for each spatial axis, outermost first."""

    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.length for axis in self.axes)

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(axis.window for axis in self.axes)


def geometry(shape, window, stride, dilation, causal) -> Geometry:
    """Return the `Geometry` of a map of this shape; every argument has one entry for each spatial axis."""
    return _geometry(tuple(shape), tuple(window), tuple(stride), tuple(dilation), tuple(causal))


@lru_cache(maxsize=1024)
def _geometry(*arguments) -> Geometry:
    return Geometry(tuple(Axis(*axis) for axis in zip(*arguments, strict=True)))
