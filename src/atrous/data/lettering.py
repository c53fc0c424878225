"""A font that has the letters of a text: Pillow's own has those of English alone, and draws boxes for others."""

from __future__ import annotations

import functools
import unicodedata

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_WIDER = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf")
"""Fonts of more letters, one of which most systems have."""


def lettering(text: str, size: int) -> tuple[str, Font]:
    """The text as it can be drawn, and the font to draw it in; letters that no font has lose their accents.

    Args:
        text: of any letters.
        size: in pixels.
    """
    if text.isascii():
        return text, _default(size)
    wider = _wider(size)
    if wider is not None:
        return text, wider
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return plain.encode("ascii", "replace").decode("ascii"), _default(size)


@functools.lru_cache(maxsize=32)
def _default(size: int) -> Font:
    return ImageFont.load_default(size=size)


@functools.lru_cache(maxsize=32)
def _wider(size: int) -> Font | None:
    for name in _WIDER:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None
