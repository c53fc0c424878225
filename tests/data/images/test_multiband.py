"""TIFFs as scientists have them, written by tifffile and libvips: both readers against NumPy, to the value."""

import io
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest

from atrous.data.images import image_file
from atrous.data.images.image_io import read_image, read_size, stored_top
from atrous.data.images.row_io import open_strips
from atrous.data.images.samples import ImageRule
from atrous.data.images.tiff_blocks import parse
from pictures import UNTURN

tifffile = pytest.importorskip("tifffile")
Array = np.ndarray
HIGH, WIDE = 37, 45


@pytest.fixture(autouse=True)
def nothing_was_said_before() -> None:
    image_file.SAID.clear()


def samples(kind: str, bands: int) -> Array:
    draws = np.random.default_rng(bands)
    shape = (HIGH, WIDE, bands)
    return draws.normal(0, 100, shape).astype(kind) if kind[0] == "f" else draws.integers(0, 120, shape).astype(kind)


def scaled(values: Array, low: float, high: float) -> Array:
    steps = np.rint(((values.astype(np.float64) - low) * 255 / (high - low)).clip(0, 255))
    return np.nan_to_num(steps).astype(np.uint8)


def both(path: Path, rule: ImageRule) -> list[Array]:
    strips = open_strips(path, rule=rule)
    assert strips.size == read_size(path)
    return [
        read_image(path, rule=rule),
        np.concatenate(list(strips.strips(10))),
        np.concatenate(list(strips.strips(64))),
    ]


KINDS = ("u1", "u2", "i2", "u4", "i4", "f2", "f4", "f8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bands", [3, 5, 13])
def test_every_kind_of_sample_in_every_arrangement(tmp_path: Path, kind: str, bands: int) -> None:
    values, path = samples(kind, bands), tmp_path / "a.tif"
    low, high = (-150, 150) if kind[0] == "f" else (10, 110)
    rule = ImageRule((low, high), (min(bands, 4), 2, 1))
    expected = scaled(values[:, :, [band - 1 for band in rule.bands]], low, high)
    for order, planes, tile, compression in itertools.product("<>", (False, True), (None, (16, 32)), (None, "zlib")):
        data = values.transpose(2, 0, 1) if planes else values
        tifffile.imwrite(
            path, data, photometric="minisblack", planarconfig="separate" if planes else "contig", byteorder=order,
            compression=compression, **({"tile": tile} if tile else {"rowsperstrip": 10}),
        )  # fmt: skip
        for picture in both(path, rule):
            assert np.array_equal(picture, expected), (order, planes, tile, compression)


@pytest.mark.parametrize("kind", ["uchar", "ushort", "short", "uint", "float", "double"])
def test_compressions_and_predictors(kind: str) -> None:
    pyvips = pytest.importorskip("pyvips")
    dtype = {"uchar": "u1", "ushort": "u2", "short": "i2", "uint": "u4", "float": "f4", "double": "f8"}[kind]
    values = samples(dtype, 5)
    image = pyvips.Image.new_from_memory(values.tobytes(), WIDE, HIGH, 5, kind).copy(interpretation="multiband")
    float_ = "float" if dtype[0] == "f" else "horizontal"
    for compression, predictor, tile in itertools.product(
        ("none", "deflate", "lzw", "packbits"), ("none", float_), (False, True)
    ):
        file = io.BytesIO(
            image.tiffsave_buffer(
                compression=compression, predictor=predictor, tile=tile, tile_width=16, tile_height=16
            )
        )
        tiff = parse(file)
        assert tiff is not None and np.array_equal(tiff.rows(file, 3, 30, (5, 1, 2)), values[3:30][:, :, [4, 0, 1]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int) -> None:
    from PIL import Image

    gray = samples("u1", 1)[:, :, 0]
    turned = np.asarray(UNTURN[orientation](Image.fromarray(gray)))
    values = np.stack([turned] * 5, -1).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig",
                     extratags=[(274, 3, 1, orientation, True)])  # fmt: skip
    for picture in both(tmp_path / "a.tif", ImageRule((0, 255), (2,))):
        assert np.array_equal(picture[:, :, 0], gray)


@pytest.mark.parametrize(("bands", "taken"), [(2, [0] * 3), (3, [0, 1, 2]), (4, [0, 1, 2]), (13, [0, 1, 2])])
def test_the_bands_that_are_taken_are_said(tmp_path: Path, bands: int, taken: list[int]) -> None:
    values, path = samples("u2", bands) * 500, tmp_path / "scene.tif"
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pictures = both(path, ImageRule((0, 65535)))
        read_image(path, rule=ImageRule((0, 65535), (1,)))
    said = [str(one.message) for one in caught]
    assert len(said) == (bands != 3) and all(f"{path}: " in line and str(bands) in line for line in said)
    if bands > 3:
        assert "bands 1, 2 and 3 are taken for red, green and blue, and so of files like it; --bands takes" in said[0]
    for picture in pictures:
        assert np.array_equal(picture, scaled(values[:, :, taken], 0, 65535))


def test_red_green_blue_and_infrared(tmp_path: Path) -> None:
    values, path = samples("u1", 4), tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha"])  # as tools declare it, wrongly
    for picture in both(path, ImageRule(bands=(4, 1, 2))):
        assert np.array_equal(picture, values[:, :, [3, 0, 1]])
    for picture in both(path, ImageRule(bands=(3, 2, 1))):
        assert np.array_equal(picture, values[:, :, 2::-1])
    with pytest.raises(ValueError, match=r"a.tif: 4 bands; expected at least 8, for the bands \(8, 4, 3\)"):
        read_image(path, rule=ImageRule(bands=(8, 4, 3)))


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("bands", [1, 3])
def test_packed_samples(tmp_path: Path, bits: int, bands: int) -> None:
    from tiffs import BLACK_IS_ZERO, RGB, tiff_bytes

    values = (samples("u2", bands) * 100) % 2**bits
    content = tiff_bytes(values, RGB if bands == 3 else BLACK_IS_ZERO, bits=bits)
    (tmp_path / "a.tif").write_bytes(content)
    for rule, high in ((ImageRule(), 2**bits - 1), (ImageRule((0, 999)), 999)):
        for picture in both(tmp_path / "a.tif", rule):
            assert np.abs(picture - scaled(values, 0, high).astype(int)).max() <= 1
    assert stored_top(tmp_path / "a.tif") in (0 if bits == 12 and bands == 1 else 2**bits - 1, 2**bits - 1)


def test_floats_want_a_range_and_what_is_not_a_number_is_black(tmp_path: Path) -> None:
    values, path = samples("f4", 1)[:, :, 0], tmp_path / "a.tif"
    tifffile.imwrite(path, values)
    for read in (read_image, lambda path: list(open_strips(path).strips(9))):
        with pytest.raises(
            ValueError, match=r"a.tif: floats from -.* to .*; expected 0 to 1, or a value range \(--value"
        ):
            read(path)
    values[3, 4], values[5, 6], values[7, 8] = np.nan, np.inf, -np.inf
    tifffile.imwrite(path, values)
    for picture in both(path, ImageRule((-50, 50))):
        assert picture[3, 4, 0] == 0 and picture[5, 6, 0] == 255 and picture[7, 8, 0] == 0
        assert np.array_equal(picture[:, :, 1], scaled(values, -50, 50))


def test_a_range_for_8_bits_scales_them_and_a_wider_one_does_not(tmp_path: Path) -> None:
    values = samples("u1", 3)
    for name in ("a.tif", "a.png"):
        path = tmp_path / name
        if name == "a.png":
            from PIL import Image

            Image.fromarray(values).save(path)
        else:
            tifffile.imwrite(path, values, photometric="rgb")
        for picture in both(path, ImageRule((0, 4095))):
            assert np.array_equal(picture, values)
        for picture in both(path, ImageRule((0, 120))):
            assert np.array_equal(picture, scaled(values, 0, 120))


def test_arrays_are_read_by_the_same_rule(tmp_path: Path) -> None:
    import torch

    values, rule = samples("u2", 5) * 30, ImageRule((0, 4095), (4, 3, 2))
    expected = scaled(values[:, :, [3, 2, 1]], 0, 4095)
    np.save(tmp_path / "a.npy", values)
    assert np.array_equal(read_image(tmp_path / "a.npy", rule=rule), expected)
    assert read_size(tmp_path / "a.npy") == (HIGH, WIDE)
    assert np.array_equal(read_image(values, rule=rule), expected)
    assert np.array_equal(read_image(torch.from_numpy(values.astype(np.int32)).permute(2, 0, 1), rule=rule), expected)
    floats = (values / 4095).astype(np.float32)
    assert np.array_equal(read_image(floats, rule=ImageRule((0, 1), (4, 3, 2))), expected)
    with pytest.raises(ValueError, match="array of int32; expected uint8, or float in 0 to 1, or a value range"):
        read_image(values[:, :, 0].astype(np.int32))
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="o.npy: an array of object"):
        read_image(tmp_path / "o.npy")
    data = (tmp_path / "a.npy").read_bytes()
    for cut in (3, 20, 90, len(data) - 1):
        with pytest.raises(ValueError, match="expected"):
            read_image(data[:cut])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_truncated_files_are_refused(tmp_path: Path, compression: str | None, tile: tuple[int, int] | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, samples("u2", 5), photometric="minisblack", planarconfig="contig", compression=compression,
                     **({"tile": tile} if tile else {"rowsperstrip": 10}))  # fmt: skip
    data = path.read_bytes()
    for cut in np.linspace(0, len(data) - 1, 64).astype(int):
        path.write_bytes(data[:cut])
        for read in (read_image, lambda path: list(open_strips(path).strips(9))):
            with pytest.raises(ValueError, match="expected") as caught:
                read(path)
            assert "\n" not in str(caught.value)
