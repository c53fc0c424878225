"""The colours that classes have by default: the colour map of the VOC development kit."""

from __future__ import annotations

import functools

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@functools.lru_cache(maxsize=64)
def voc_palette(n: int) -> tuple[Colour, ...]:
    """The first n colours of the colour map of the VOC development kit, which go on to 65,536 as its 256 begin.

    Bit j of the id, counted from the lowest, becomes bit 7 - j // 3 of red, green or blue, for j modulo 3 of 0, 1, 2.
    Colours of neighbouring ids therefore differ most.
    """
    if not 0 <= n <= 65536:
        raise ValueError(f"voc_palette({n}): expected 0 to 65536 colours, one for each value of 16 bits")

    def channel(index: int, first: int) -> int:
        return sum(((index >> (3 * level + first)) & 1) << (7 - level) for level in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(n))
