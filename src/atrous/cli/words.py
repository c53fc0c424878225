"""Suggest the word that was meant."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], *, list_all: bool = False) -> str:
    """``; did you mean ...?`` where a known word is near; else nothing, or all known words."""
    known = list(known)
    near = difflib.get_close_matches(word, known, 1, 0.7)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}" if list_all else ""
