"""Divide images into train and val, seeded and stratified by class, for data sets that come without splits.

    train, val = divide(names, classes)     # indices; the same on every machine, in whatever order the images come

The order is that of a hash of seed and name. Rare classes choose first: each class that occurs in two images or more
is on both sides, and about `share` of its images are in val. A class of one image is in train.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Hashable, Sequence

SHARE = 0.2
"""The share of images that validate, unless another is asked for."""


def divide(
    names: Sequence[str], classes: Sequence[Collection[Hashable]] | None = None, share: float = SHARE, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Divide images into those to train on and those to validate on.

    Args:
        names: of the images; they alone and the seed decide the order, so that another folder gives the same split.
        classes: of each image, the classes that occur in it, however they are written; None divides by name alone.
        share: of the images that go to val, between 0 and 1; at least one image, and more where a class needs it.
        seed: another one gives another split.

    Returns:
        The indices of train and of val, ascending; together all images.

    Raises:
        ValueError: if there are fewer than two images, or `share` is not between 0 and 1.
    """
    if len(names) < 2:
        raise ValueError(f"{len(names)} images; expected two or more, to divide them into train and val")
    if not 0 < share < 1:
        raise ValueError(f"a share of {share} for val; expected a number between 0 and 1, such as {SHARE}")
    of_image = [frozenset(ids) for ids in classes] if classes is not None else [frozenset[Hashable]()] * len(names)
    val = _chosen(_shuffled(names, seed), of_image, share)
    return [index for index in range(len(names)) if index not in val], sorted(val)


def _shuffled(names: Sequence[str], seed: int) -> list[int]:
    def key(index: int) -> tuple[bytes, str, int]:
        text = f"{seed}/{names[index]}".encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, digest_size=8).digest(), names[index], index

    return sorted(range(len(names)), key=key)


def _chosen(order: Sequence[int], of_image: Sequence[frozenset[Hashable]], share: float) -> set[int]:
    """The images of val: for each class, the rarest first, some of its images; then others up to the share."""
    target = _clamped(share, len(order))
    left = Counter(label for index in order for label in of_image[index])
    wanted = {label: _clamped(share, count) for label, count in left.items()}
    first = {label: place for place, index in reversed([*enumerate(order)]) for label in of_image[index]}
    val: set[int] = set()
    have = Counter[Hashable]()

    def take(index: int) -> None:
        val.add(index)
        have.update(of_image[index])
        left.subtract(of_image[index])

    for rare in sorted(wanted, key=lambda label: (left[label], first[label], str(label))):
        for index in (index for index in order if rare in of_image[index] and index not in val):
            enough = len(val) >= (target if have[rare] else max(target, len(order) // 2))
            if enough or have[rare] >= wanted[rare]:
                break
            if all(left[label] > 1 for label in of_image[index]):
                take(index)
    for index in order:
        if len(val) < target and index not in val and all(left[label] > 1 for label in of_image[index]):
            take(index)
    return val or {order[0]}  # where every image has a class of its own


def _clamped(share: float, count: int) -> int:
    """The share of a count, one or more on both sides where there are two."""
    return min(max(1, round(share * count)), count - 1)
