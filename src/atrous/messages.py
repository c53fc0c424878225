"""Wording: the nearest known word, a list cut short, a number with its noun, a table of Markdown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(word: object, known: Iterable[str], *, otherwise: str = "there are") -> str:
    """For the end of an error: the known word that is nearest to an unknown one.

    Args:
        word: what was given.
        known: what there is.
        otherwise: introduces all known words where none is near; empty for none of them.
    """
    known = list(known)
    near = difflib.get_close_matches(str(word), known, 1, 0.66)  # of three letters, two may be swapped
    if near:
        return f"; did you mean {near[0]}?"
    return f"; {otherwise}: {', '.join(known) or 'none'}" if otherwise else ""


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are: ``a, b, c and 2 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the head first, as a table of Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun: ``1 class``, ``2 classes``; `many` is `one` with s or es unless it is given."""
    return f"{count} {one if count == 1 else many or one + ('es' if one.endswith(('s', 'x')) else 's')}"
