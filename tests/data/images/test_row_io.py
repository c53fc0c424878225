"""Pictures by rows are what they are as a whole, in every format, mode and orientation; masks by rows likewise."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from atrous.data.images import row_io as module
from atrous.data.images.image_io import (
    read_image,
    read_mask,
    read_note,
    read_size,
    write_mask,
    write_mask_strips,
)
from atrous.data.images.row_io import open_strips, strips_of
from atrous.data.labels import VOC
from reliability import counted, record

pytest.importorskip("pyvips", reason="the extra 'large' is not installed")


def picture(height: int = 70, width: int = 90) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 60, (height, width))
    return np.stack([rows * 2, columns * 2, noise], -1).astype(np.uint8)


def joined(path: Path, rows: int = 16) -> np.ndarray:
    opened = open_strips(path)
    parts = list(opened.strips(rows))
    assert {len(part) for part in parts[:-1]} <= {rows}
    pixels = np.concatenate(parts)
    assert pixels.shape[:2] == opened.size and pixels.dtype == np.uint8
    return pixels


def in_mode(mode: str) -> Image.Image:
    image = Image.fromarray(picture())
    if mode == "I;16":
        return Image.fromarray(picture()[:, :, 0].astype(np.uint16) * 200)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(picture()[:, :, 1]))
    return image.quantize(16) if mode == "P" else image.convert(mode)


SAVED = [
    ("PNG", "RGB"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "I;16"),
    ("TIFF", "RGB"), ("TIFF", "L"), ("TIFF", "RGBA"), ("TIFF", "P"), ("TIFF", "1"), ("TIFF", "I;16"), ("TIFF", "CMYK"),
    ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("MPO", "RGB"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mode"), SAVED)
def test_strips_are_the_whole_picture(tmp_path: Path, kind: str, mode: str) -> None:
    in_mode(mode).save(tmp_path / "a.img", kind)
    whole = read_image(tmp_path / "a.img")
    # JPEG's colours are rounded in two libraries.
    assert np.abs(joined(tmp_path / "a.img").astype(int) - whole).max() <= (3 if kind in ("JPEG", "MPO") else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_strips_stand_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(tmp_path / "a.img", kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    whole = read_image(tmp_path / "a.img")
    assert open_strips(tmp_path / "a.img").size == whole.shape[:2] == read_size(tmp_path / "a.img")
    assert np.abs(joined(tmp_path / "a.img").astype(int) - whole).max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("JPEG", {"progressive": True}),
        ("PNG", {"interlace": 1}),
    ],
)
def test_other_layouts_of_the_bytes(tmp_path: Path, kind: str, options: dict) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.img", kind, **options)
    assert np.abs(joined(tmp_path / "a.img").astype(int) - read_image(tmp_path / "a.img")).max() <= 3


def test_tiles_16_bit_colours_and_names_of_any_bytes(tmp_path: Path) -> None:
    import pyvips

    pyvips.Image.new_from_array(picture()).tiffsave(str(tmp_path / "t.tif"), tile=True, tile_width=32, tile_height=32)
    assert np.array_equal(joined(tmp_path / "t.tif"), picture())
    wide = pyvips.Image.new_from_array(picture().astype(np.uint16) * 257).copy(interpretation="rgb16")
    wide.pngsave(str(tmp_path / "w.png"))
    assert np.array_equal(joined(tmp_path / "w.png"), picture())
    assert np.array_equal(joined(tmp_path / "w.png"), read_image(tmp_path / "w.png"))
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a[1]\n\xff,page=2.png"))
    Image.fromarray(picture()).save(str(tmp_path / "b.png"))
    (tmp_path / "b.png").rename(odd)
    assert np.array_equal(joined(odd), picture())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_truncated_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, kind)
    path = tmp_path / "cut.img"
    for part in range(1, 16):
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * part // 16])
        with pytest.raises(ValueError, match=r"cut\.img: .*expected"):
            joined(path)


@pytest.mark.parametrize(("kind", "compression"), [("PNG", None), ("JPEG", None), ("TIFF", None), ("TIFF", "tiff_lzw")])
def test_a_file_cut_while_it_is_read(tmp_path: Path, kind: str, compression: str | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 400, 3), dtype=np.uint8)
    options = {"compression": compression} if compression else {}
    Image.fromarray(noise).save(tmp_path / "a.img", kind, **options)
    strips = open_strips(tmp_path / "a.img").strips(16)
    next(strips)
    os.truncate(tmp_path / "a.img", 100_000)
    with pytest.raises(ValueError, match=r"a\.img: .*expected"):
        list(strips)


def test_a_file_replaced_between_two_passes(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "b.png")
    opened = open_strips(tmp_path / "b.png")
    Image.fromarray(picture()[::-1]).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: changed while it was read; expected one picture"):
        list(opened.strips(16))


def test_what_is_not_read_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.gif")
    Image.fromarray(picture()).convert("LAB").save(tmp_path / "lab.tif")
    for name in ("a.gif", "lab.tif"):  # whole, if it is not too large for that
        assert np.array_equal(joined(tmp_path / name), read_image(tmp_path / name))
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.gif: GIF with samples of P is not read by rows; expected JPEG, PNG or"):
        open_strips(tmp_path / "a.gif", max_pixels=10**6)
    with pytest.raises(ValueError, match=r"lab\.tif: TIFF with samples of LAB is not read by rows; expected JPEG, PNG"):
        open_strips(tmp_path / "lab.tif", max_pixels=10**6)
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_strips(tmp_path / "none.png")
    with pytest.raises(ValueError, match="90x70 pixels; expected at most 100"):
        Image.fromarray(picture()).save(tmp_path / "a.png")
        open_strips(tmp_path / "a.png", max_pixels=100)
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(ValueError, match=r"needs pyvips: pip install 'atrous\[large\]'"):
        open_strips(tmp_path / "a.png")
    assert not module.is_installed()


@pytest.mark.parametrize("to_the_end", [True, False])
def test_nothing_of_a_picture_stays_behind(tmp_path: Path, to_the_end: bool) -> None:
    import pyvips

    most = pyvips.cache_get_max()
    Image.fromarray(picture()).save(tmp_path / "a.tif", compression="tiff_lzw")
    strips = open_strips(tmp_path / "a.tif").strips(16)
    next(strips)
    assert pyvips.cache_get_size() > 0
    list(strips) if to_the_end else strips.close()
    assert pyvips.cache_get_size() == 0 and pyvips.cache_get_max() == most > 0


def test_an_array_by_rows_shares_its_memory() -> None:
    image = picture()
    parts = list(strips_of(image).strips(32))
    assert [len(part) for part in parts] == [32, 32, 6] and np.array_equal(np.concatenate(parts), image)
    assert all(np.shares_memory(part, image) for part in parts)


@pytest.mark.parametrize("rows", [1, 7, 200])
def test_a_mask_written_by_rows_is_the_mask(tmp_path: Path, rows: int) -> None:
    mask = np.random.default_rng(1).integers(0, 21, (53, 37), dtype=np.uint8)
    mask[0] = 255
    parts = (mask[top : top + rows] for top in range(0, 53, rows))
    write_mask_strips(tmp_path / "s.png", parts, (53, 37), VOC, "a note")
    write_mask(tmp_path / "w.png", mask, VOC, "a note")
    assert np.array_equal(read_mask(tmp_path / "s.png"), mask)
    assert read_note(tmp_path / "s.png") == read_note(tmp_path / "w.png") == "a note"
    with Image.open(tmp_path / "s.png") as by_rows, Image.open(tmp_path / "w.png") as expected:
        assert by_rows.mode == "P" and by_rows.getpalette() == expected.getpalette()


def test_a_mask_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((5, 9), dtype=np.uint8)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_mask_strips(tmp_path / "m.png", broken(), (9, 9), VOC)
    with pytest.raises(ValueError, match=r"m\.png: strips of 5 rows in all; expected 9"):
        write_mask_strips(tmp_path / "m.png", [np.zeros((5, 9), dtype=np.uint8)], (9, 9), VOC)
    with pytest.raises(ValueError, match=r"m\.png: a strip of uint8, \(9, 5\); expected uint8, 9 wide"):
        write_mask_strips(tmp_path / "m.png", [np.zeros((9, 5), dtype=np.uint8)], (9, 9), VOC)
    assert list(tmp_path.iterdir()) == []


def whole_files() -> list[bytes]:
    files = []
    for kind, options in [("PNG", {}), ("JPEG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]:
        buffer = io.BytesIO()
        Image.fromarray(picture()).save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8)
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def read_or_refused(path: Path, whole: bytes, changes: list[tuple[int, int]]) -> bool:
    """Half of the changes fall into the header, where they do most."""
    content = bytearray(whole)
    for number, (place, value) in enumerate(changes):
        content[place % (len(content) if number % 2 else 200)] = value
    path.write_bytes(content)
    try:
        opened = open_strips(path, max_pixels=10**6)
        assert sum(len(part) for part in opened.strips(16)) == opened.size[0]
        return True
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error) and "expected" in str(error)
        return False


@settings(FUZZ, max_examples=150)
@given(whole=st.sampled_from(whole_files()), changes=CHANGES)
def test_changed_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, whole: bytes, changes) -> None:
    read_or_refused(tmp_path_factory.getbasetemp() / "a.img", whole, changes)


@pytest.mark.slow
def test_ten_thousand_changed_files_are_read_or_refused(tmp_path: Path) -> None:
    read: list[bool] = []

    @settings(FUZZ, max_examples=counted(10_000))
    @given(whole=st.sampled_from(whole_files()), changes=CHANGES)
    def many(whole: bytes, changes: list[tuple[int, int]]) -> None:
        read.append(read_or_refused(tmp_path / "a.img", whole, changes))

    many()
    record("fuzzing", f"pictures by rows: {len(read):,} files, {sum(read):,} read, the others refused by name")
