"""No class is drawn nearly black, and any two can be told apart, by the colour-blind too."""

import numpy as np
import pytest

from atrous.data.labels import CAMVID, CITYSCAPES, VOC, Labels, voc_palette
from atrous.data.palette import LEAST_DISTANCE, LEAST_LIGHTNESS, as_seen, distance, drawn_palette, has_own_colours


def named(count: int, *, background: bool = True) -> Labels:
    names = ("background", *(f"class {index}" for index in range(1, count)))
    return Labels(names if background else tuple(f"class {index}" for index in range(count)), voc_palette(count))


def apart(palette) -> np.ndarray:
    distances = distance(palette, palette)
    distances[np.diag_indices(len(palette))] = np.inf
    return distances


@pytest.mark.parametrize("labels", [VOC, CITYSCAPES, CAMVID, *(named(count) for count in (2, 3, 9, 21, 60))])
def test_any_two_classes_can_be_told_apart_with_all_cones_or_two_kinds(labels: Labels) -> None:
    palette = drawn_palette(labels)
    assert apart(palette).min() >= LEAST_DISTANCE
    dark = as_seen(palette)[0, :, 0] < LEAST_LIGHTNESS
    assert [name for name, is_dark in zip(labels.names, dark, strict=True) if is_dark] in ([], ["background"])


@pytest.mark.parametrize(("count", "neighbours", "any_two"), [(3, 80, 80), (9, 35, 25), (21, 20, 13), (60, 8, 5)])
def test_colours_of_our_own_are_far_apart(count: int, neighbours: float, any_two: float) -> None:
    distances = apart(drawn_palette(named(count)))
    assert distances.min() >= any_two and np.diagonal(distances, 1).min() >= neighbours


def test_as_many_classes_as_a_mask_holds_are_drawn_in_different_colours() -> None:
    assert len({*drawn_palette(named(255))}) == 255


def test_own_colours_are_kept_but_for_those_that_cannot_be_told_apart() -> None:
    own = ((0, 0, 0), (200, 0, 0), (5, 5, 5), (0, 200, 0), (200, 2, 0))
    drawn = drawn_palette(Labels(("background", "a", "nearly black", "b", "as a"), own))
    assert [new == old for new, old in zip(drawn, own, strict=True)] == [True, True, False, True, False]
    assert drawn_palette(CAMVID) == CAMVID.palette


def test_black_is_for_background_alone() -> None:
    assert drawn_palette(Labels(("sky", "road"), ((0, 0, 0), (200, 0, 0))))[0] != (0, 0, 0)
    assert drawn_palette(named(3))[0] == (0, 0, 0)


def test_voc_colours_are_somebodys_choice_for_voc_alone() -> None:
    assert has_own_colours(VOC) and not has_own_colours(named(21))
    assert has_own_colours(Labels(("a", "b"), ((1, 2, 3), (200, 0, 0))))


def test_dichromats_confuse_what_they_confuse() -> None:
    """Red and green of the same lightness are far apart for most people, near each other without one kind of cone."""
    lab = as_seen([(200, 60, 60), (90, 120, 40)])
    normal, protan, deutan = (np.linalg.norm(seen[0] - seen[1]) for seen in lab)
    assert normal > 60 and min(protan, deutan) < normal / 2
    assert np.allclose(as_seen([(255, 255, 255)])[0, 0], (100, 0, 0), atol=0.02)  # CIELAB's white
    assert np.allclose(as_seen([(255, 0, 0)])[0, 0], (53.24, 80.09, 67.20), atol=0.1)  # and red, as published
