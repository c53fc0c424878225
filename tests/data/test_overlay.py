"""The overlay lies on the picture, with a legend where there is room."""

import numpy as np
import pytest

from atrous.data.labels import CAMVID, VOC
from atrous.data.overlay import overlay


def test_overlay_blends_and_spares_ignored_and_background() -> None:
    image = np.full((200, 300, 3), 100, dtype=np.uint8)
    mask = np.zeros((200, 300), dtype=np.uint8)
    mask[:, 100:200], mask[:, 200:] = 15, 255
    drawn = np.asarray(overlay(image, mask, VOC, alpha=0.5, legend=False))
    assert (drawn[50, 50] == 100).all() and (drawn[50, 250] == 100).all()
    assert np.abs(drawn[50, 150].astype(int) - (146, 114, 114)).max() <= 1
    assert (drawn[50, 99] > 150).all(), "the outline is light"
    with pytest.raises(ValueError, match="expected H,W,3 and H,W"):
        overlay(image, mask[:10], VOC)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (64, 48), (128, 600), (640, 480), (2000, 1500)])
def test_overlay_of_any_size_has_the_size_of_the_picture(width: int, height: int) -> None:
    image = np.full((height, width, 3), 90, dtype=np.uint8)
    mask = np.arange(width * height).reshape(height, width) * 11 // (width * height)
    with_legend, without = (overlay(image, mask, CAMVID, legend=legend) for legend in (True, False))
    assert with_legend.size == (width, height)
    assert (np.asarray(with_legend) != np.asarray(without)).any() == (width >= 640)


def test_a_trace_of_a_class_is_left_out_of_the_legend() -> None:
    image = np.full((480, 640, 3), 90, dtype=np.uint8)
    mask = np.zeros((480, 640), dtype=np.uint8)
    plain = np.asarray(overlay(image, mask, CAMVID))
    mask[0, 639] = 3  # far from the legend, and 1 of 307,200 pixels
    assert (np.asarray(overlay(image, mask, CAMVID))[200:] == plain[200:]).all()
