"""A PNG that is written in strips, by ISA-L or by zlib, is read by Pillow as the same pixels."""

import io
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from atrous.data.images.png import write_png

RNG = np.random.default_rng(0)


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def compressor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setitem(sys.modules, "isal", None)


def strips(pixels: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    return (pixels[top : top + rows] for top in range(0, len(pixels), rows))


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("size", [(1, 1), (53, 2), (200, 301)])
def test_pillow_reads_what_was_written(size: tuple[int, int], rows: int) -> None:
    noise, clear = (RNG.integers(0, 256, (*size, channels), dtype=np.uint8) for channels in (3, 4))
    ids = np.repeat(RNG.integers(0, 256, (size[0], 1), dtype=np.uint8), size[1], axis=1)
    wide = RNG.integers(0, 65_536, size)
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    write_png(rgb := io.BytesIO(), size, strips(noise, rows), "RGB")
    write_png(indexed := io.BytesIO(), size, strips(ids, rows), "palette", palette=palette.tobytes(), text={"k": "é €"})
    write_png(gray := io.BytesIO(), size, strips(wide, rows), "gray", bits=16)
    write_png(rgba := io.BytesIO(), size, strips(clear, rows), "RGBA")
    write_png(flat := io.BytesIO(), size, strips(np.full((*size, 3), 200, np.uint8), rows), "RGB")
    with Image.open(rgb) as image:
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), noise)
    with Image.open(rgba) as image:
        assert image.mode == "RGBA" and np.array_equal(np.asarray(image), clear)
    with Image.open(indexed) as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), ids) and image.info["k"] == "é €"
        assert np.array_equal(np.asarray(image.convert("RGB")), palette[ids])
    with Image.open(gray) as image:
        assert image.mode.startswith("I") and np.array_equal(np.asarray(image), wide)
    with Image.open(flat) as image:
        assert (np.asarray(image) == 200).all()


def test_strips_that_do_not_fit_are_named() -> None:
    ids = np.zeros((9, 5), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"m\.png: strips of 9 rows in all; expected 10"):
        write_png(io.BytesIO(), (10, 5), [ids], "gray", name="m.png")
    with pytest.raises(ValueError, match=r"m\.png: a strip of uint8, \(9, 5\); expected uint8, 6 wide"):
        write_png(io.BytesIO(), (9, 6), [ids], "gray", name="m.png")
    with pytest.raises(ValueError, match=r"a strip of int64, \(9, 5\); expected uint8, 5 wide"):
        write_png(io.BytesIO(), (9, 5), [ids.astype(np.int64)], "gray")
    with pytest.raises(ValueError, match=r"a strip of uint8, \(0, 5\); expected uint8, 5 wide"):
        write_png(io.BytesIO(), (9, 5), [ids[:4], ids[:0], ids[4:]], "gray")


def test_masks_take_few_bytes() -> None:
    ids = np.kron(RNG.integers(0, 1000, (8, 9)), np.ones((37, 41), dtype=np.int64)).astype(np.uint16)
    by_pillow = io.BytesIO()
    Image.fromarray(ids).save(by_pillow, "PNG")
    write_png(file := io.BytesIO(), ids.shape, [ids], "gray", bits=16)
    assert len(file.getvalue()) < 2 * len(by_pillow.getvalue())
