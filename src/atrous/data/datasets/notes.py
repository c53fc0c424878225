"""Count what a reader of annotations leaves out or guesses, with examples: one line a kind."""

from __future__ import annotations

from collections import defaultdict

from atrous.messages import listed


class Notes:
    """Kinds of remark, each with the places where it holds."""

    def __init__(self) -> None:
        """Nothing is noted yet."""
        self._places: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, place: str) -> None:
        """Note one more case: `kind` follows a number, such as "polylines have no area, and are left out"."""
        self._places[kind].append(place)

    def update(self, other: Notes) -> None:
        """Take over the remarks of another."""
        for kind, places in other._places.items():
            self._places[kind] += places

    def lines(self, where: object) -> list[str]:
        """A line a kind: where, how many, of what, and two places."""
        return [
            f"{where}: {len(places)} {kind}: {listed([*dict.fromkeys(places)], 2)}"
            for kind, places in self._places.items()
        ]
