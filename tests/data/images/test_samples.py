"""Both readers, whole and by rows, against NumPy: every kind of TIFF, PNG, JPEG and WebP; 16 bits that are fewer."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from atrous.data.images import image_file
from atrous.data.images import samples as module
from atrous.data.images.image_io import read_image, read_size
from atrous.data.images.row_io import is_installed, open_strips
from atrous.data.images.samples import AS_IT_IS, ImageRule
from pictures import UNTURN, chunk
from tiffs import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    CMYK,
    FLOAT,
    LAB,
    PALETTE,
    RGB,
    SIGNED,
    UNASSOCIATED,
    UNSPECIFIED,
    WHITE_IS_ZERO,
    YCBCR,
    tiff_bytes,
)

Array = np.ndarray
HEIGHT, WIDTH = 33, 41


@pytest.fixture(autouse=True)
def no_guess_was_made_before() -> None:
    module.GUESSED_BITS.clear()
    image_file.SAID.clear()


def light(bands: int) -> Array:
    """Float H,W,bands in 0..1: ramps that differ by band, alpha-like ones included; each reaches 1."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramps = [y / (HEIGHT - 1), x / (WIDTH - 1), (y + x) / (HEIGHT + WIDTH - 2), (x > 20) * 0.75 + 0.25, y * 0 + 0.2]
    return np.stack([*ramps, 1 - ramps[0]][:bands], axis=-1)


def stored(values: Array, bits: int) -> Array:
    top = 2**bits - 1
    return np.rint(values * top).astype(np.uint8 if bits <= 8 else np.uint16)


def over_white(colours: Array, alpha: Array | None, premultiplied: bool = False) -> Array:
    if alpha is None:
        return colours
    return colours * (1 if premultiplied else alpha) + 1 - alpha


def seen(values: Array, photometric: int, extra: tuple[int, ...] = ()) -> Array:
    """What a person sees, float H,W,3 in 0..255, of stored values as floats in 0..1."""
    count = {RGB: 3, CMYK: 4, YCBCR: 3, LAB: 3}.get(photometric, 1)
    colours, others = values[:, :, :count], values[:, :, count:]
    if photometric == WHITE_IS_ZERO:
        colours = 1 - colours
    if photometric == CMYK:
        colours = (1 - colours[:, :, :3]) * (1 - colours[:, :, 3:])
    if photometric == YCBCR:
        luma, blue, red = (255 * colours - (0, 128, 128)).transpose(2, 0, 1)
        rgb = [luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue]
        colours = np.stack(rgb, -1).clip(0, 255) / 255
    kind = extra[0] if extra else UNSPECIFIED
    alpha = others[:, :, :1] if kind in (ASSOCIATED, UNASSOCIATED) else None
    return 255 * np.broadcast_to(over_white(colours, alpha, kind == ASSOCIATED), (HEIGHT, WIDTH, 3))


def both(path: Path, rule: ImageRule = AS_IT_IS) -> list[Array]:
    """The picture as both readers give it; a refusal is one line."""
    pictures = [read_image(path, rule=rule)]
    if is_installed():
        opened = open_strips(path, rule=rule)
        pictures.append(np.concatenate(list(opened.strips(16))))
        assert opened.size == pictures[1].shape[:2]
    assert read_size(path) == pictures[0].shape[:2]
    return pictures


def check(path: Path, content: bytes, expected: Array, tolerance: float = 1.01, rule: ImageRule = AS_IT_IS) -> None:
    path.write_bytes(content)
    for name, picture in zip(("whole", "by rows"), both(path, rule), strict=False):
        assert picture.dtype == np.uint8 and picture.shape == expected.shape
        assert np.abs(picture - expected.astype(float)).max() <= tolerance, name


def check_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    for read in [read_image, *([lambda path: list(open_strips(path).strips(9))] if is_installed() else [])]:
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert "expected" in str(caught.value) and "\n" not in str(caught.value)


LAYOUTS = [
    {},
    {"big_endian": True},
    {"deflate": True},
    {"tile": 16},
    {"tile": 16, "deflate": True, "big_endian": True},
    {"planar": True},
    {"planar": True, "deflate": True, "big_endian": True},
    {"planar": True, "tile": 16},
]


@pytest.fixture(params=LAYOUTS, ids=["-".join(layout) or "strips" for layout in LAYOUTS])
def layout(request: pytest.FixtureRequest) -> dict:
    return request.param


@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_of_any_bits(tmp_path: Path, layout: dict, bits: int, photometric: int) -> None:
    values = stored(light(1) ** 2, bits)
    content = tiff_bytes(values, photometric, bits=bits, **layout)
    check(tmp_path / "a.tif", content, seen(values / (2**bits - 1), photometric))


@pytest.mark.filterwarnings("ignore:.*the others are left out", "ignore:.*bands? 1")
@pytest.mark.parametrize("extra", [(), (UNSPECIFIED,), (ASSOCIATED,), (UNASSOCIATED,), (UNSPECIFIED,) * 2])
@pytest.mark.parametrize("photometric", [BLACK_IS_ZERO, RGB, CMYK, YCBCR])
@pytest.mark.parametrize("bits", [8, 16])
def test_colours_and_more_bands(
    tmp_path: Path, layout: dict, bits: int, photometric: int, extra: tuple[int, ...]
) -> None:
    count = {RGB: 3, CMYK: 4, YCBCR: 3}.get(photometric, 1)
    values = light(count)
    if extra:
        alpha = light(4)[:, :, 3:]
        values = values * alpha if extra[0] == ASSOCIATED else values
        values = np.concatenate([values, alpha, *[light(5)[:, :, 4:]] * (len(extra) - 1)], axis=-1)
    samples = stored(values, bits)
    content = tiff_bytes(samples, photometric, bits=bits, extra=extra, **layout)
    try:
        read_image(content)
    except ValueError as error:
        kind = {BLACK_IS_ZERO: "black is zero", RGB: "RGB", CMYK: "CMYK", YCBCR: "YCbCr"}[photometric]
        message = rf"a TIFF of {samples.shape[2]} bands of {bits} bits \({kind}"
        ours = [(RGB, ()), (RGB, (UNSPECIFIED,)), (RGB, (UNASSOCIATED,)), (CMYK, ())]
        assert (photometric, extra) not in ours and (photometric, bits, extra) != (BLACK_IS_ZERO, 8, ()), error
        return check_refused(tmp_path / "a.tif", content, message)
    expected = seen(samples / (2**bits - 1), photometric, extra)
    if (photometric, len(extra)) == (BLACK_IS_ZERO, 2):  # three bands of no declared colour are red, green and blue
        expected = seen(samples / (2**bits - 1), RGB)
    check(tmp_path / "a.tif", content, expected, 2.6 if photometric == YCBCR or ASSOCIATED in extra else 1.6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("wide", [257, 1], ids=["16-bit colours", "8-bit colours"])
def test_palettes(tmp_path: Path, layout: dict, bits: int, wide: int) -> None:
    rng = np.random.default_rng(bits)
    colours = rng.integers(0, 256, (3, 2**bits))
    values = stored(light(1), bits)
    content = tiff_bytes(values, PALETTE, bits=bits, more={320: tuple((colours * wide).ravel().tolist())}, **layout)
    check(tmp_path / "a.tif", content, colours.T[values[:, :, 0]])


def test_floats_and_signed_integers(tmp_path: Path, layout: dict) -> None:
    gray = light(1)
    for photometric in (BLACK_IS_ZERO, WHITE_IS_ZERO):
        content = tiff_bytes(gray.astype(np.float32), photometric, bits=32, sample_format=FLOAT, **layout)
        check(tmp_path / "f.tif", content, seen(gray, photometric))
    content = tiff_bytes(np.rint(gray * 32767).astype(np.int16), BLACK_IS_ZERO, bits=16, sample_format=SIGNED, **layout)
    check(tmp_path / "s.tif", content, seen(gray, BLACK_IS_ZERO))
    content = tiff_bytes(np.rint(gray * 127).astype(np.int8), BLACK_IS_ZERO, sample_format=SIGNED, **layout)
    check(tmp_path / "b.tif", content, seen(gray, BLACK_IS_ZERO), 1.6)
    content = tiff_bytes(light(3).astype(np.float32), RGB, bits=32, sample_format=FLOAT, **layout)
    check(tmp_path / "c.tif", content, seen(light(3), RGB))
    content = tiff_bytes(gray.astype(np.float64), BLACK_IS_ZERO, bits=64, sample_format=FLOAT, **layout)
    check(tmp_path / "d.tif", content, seen(gray, BLACK_IS_ZERO))


def test_five_bands_of_which_one_is_transparency_are_refused(tmp_path: Path, layout: dict) -> None:
    content = tiff_bytes(stored(light(5), 8), BLACK_IS_ZERO, extra=(2, 0, 0, 0), **layout)
    check_refused(
        tmp_path / "a.tif", content, r"a TIFF of 5 bands of 8 bits \(black is zero.*; expected gray, RGB, pal"
    )


def test_lab_is_colour_managed(tmp_path: Path) -> None:
    values = np.concatenate([light(1) * 255, light(3)[:, :, 1:] * 80 - 40], -1).astype(np.int64)
    content = tiff_bytes((values % 256).astype(np.uint8), LAB)
    offset = Image.frombytes("LAB", (WIDTH, HEIGHT), (values % 256).astype(np.uint8).tobytes())
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    expected = np.asarray(ImageCms.profileToProfile(offset, *profiles, outputMode="RGB"))
    check(tmp_path / "a.tif", content, expected, 3)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "jpeg", "tiff_adobe_deflate", "group4"])
def test_other_compressions(tmp_path: Path, compression: str) -> None:
    rgb = np.rint(light(3) * 255).astype(np.uint8)
    for mode in ["1"] if compression == "group4" else ["L", "RGB", "CMYK"]:
        image = Image.fromarray(rgb).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "TIFF", compression=compression)
        expected = np.asarray(image.convert("L" if mode == "1" else mode).convert("RGB")).astype(int)
        check(tmp_path / "a.tif", buffer.getvalue(), expected, 12 if compression == "jpeg" else 0)


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("where", ["EXIF", "XMP"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "late PNG"])
def test_orientation(tmp_path: Path, kind: str, where: str, orientation: int) -> None:
    rgb = np.rint(light(3) * 255).astype(np.uint8)
    image = UNTURN[orientation](Image.fromarray(rgb))
    options: dict = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    buffer = io.BytesIO()
    if where == "EXIF":
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    else:
        options["xmp"] = XMP.format(orientation).encode()
    if kind == "TIFF":
        more: dict = {274: (orientation,)} if where == "EXIF" else {700: options["xmp"]}
        buffer.write(tiff_bytes(np.asarray(image), RGB, more=more))
    elif kind.endswith("PNG"):
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + options.get("xmp", b"")
        data = ("eXIf", options["exif"].tobytes()[6:]) if where == "EXIF" else ("iTXt", text)
        image.save(buffer, "PNG")
        start = 33 if kind == "PNG" else buffer.getvalue().index(b"IEND") - 4
        whole = buffer.getvalue()
        buffer = io.BytesIO(whole[:start] + chunk(data[0].encode(), data[1]) + whole[start:])
    else:
        image.save(buffer, kind, **options)
    check(tmp_path / "a.img", buffer.getvalue(), rgb, 6 if kind == "JPEG" else 0)


def png(values: Array, bits: int, colour: int, more: bytes = b"") -> bytes:
    """A PNG of H,W,C values; `more` are chunks before the pixels."""
    import struct
    import zlib

    rows = values.reshape(len(values), -1).astype(np.int64)
    if bits == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        spread = ((rows[:, :, None] >> np.arange(bits)[::-1]) & 1).reshape(len(rows), -1).astype(np.uint8)
        packed = [row.tobytes() for row in np.packbits(spread, axis=1)]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in packed))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(
    ("colour", "bits"), [*itertools.product([0], [1, 2, 4, 8, 16]), *itertools.product([2, 4, 6], [8, 16]),
                         *itertools.product([3], [1, 2, 4, 8])]
)  # fmt: skip
def test_pngs(tmp_path: Path, colour: int, bits: int, transparent: bool) -> None:
    count = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if transparent and colour in (4, 6):
        return  # which have alpha
    values = stored(light(4)[:, :, [2, 3]] if count == 2 else light(count), bits)
    key, more = values[10, 11], b""
    floats = values / (2**bits - 1)
    if colour == 3:
        colours = np.random.default_rng(0).integers(0, 256, (2**bits, 3))
        alpha = np.where(np.arange(2**bits) == key, 100 if transparent else 255, 255)[values]
        more = chunk(b"PLTE", colours.astype(np.uint8).tobytes())
        more += chunk(b"tRNS", alpha_table(2**bits, int(key[0]))) if transparent else b""
        expected = 255 * over_white(colours[values[:, :, 0]] / 255, alpha / 255)
    elif transparent:
        more = chunk(b"tRNS", key.astype(">u2").tobytes())
        expected = np.where((values == key).all(-1, keepdims=True), 255, 255 * floats)
    else:
        expected = 255 * (over_white(floats[:, :, :-1], floats[:, :, -1:]) if colour in (4, 6) else floats)
    check(tmp_path / "a.png", png(values, bits, colour, more), np.broadcast_to(expected, (HEIGHT, WIDTH, 3)), 1.6)


def alpha_table(length: int, key: int) -> bytes:
    return bytes(100 if index == key else 255 for index in range(length))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_jpegs(tmp_path: Path, mode: str, options: dict) -> None:
    rgb = np.rint(light(3) * 255).astype(np.uint8)
    image, buffer = Image.fromarray(rgb).convert(mode), io.BytesIO()
    image.save(buffer, "JPEG", quality=98, **options)
    check(tmp_path / "a.jpg", buffer.getvalue(), np.asarray(image.convert("RGB")).astype(int), 25)
    whole, *rows = both(tmp_path / "a.jpg")
    assert all(np.abs(whole.astype(int) - other).max() <= 3 for other in rows)
    plain = buffer.getvalue().replace(b"Adobe", b"xdobe")  # inverted as well, as browsers take it
    check(tmp_path / "a.jpg", plain, whole, 3)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 95}])
@pytest.mark.parametrize("alpha", [False, True])
def test_webps_and_other_formats_by_rows_are_read_whole(tmp_path: Path, options: dict, alpha: bool) -> None:
    values = np.rint(light(4 if alpha else 3) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "WEBP", exact=True, **options)
    check(tmp_path / "a.webp", buffer.getvalue(), seen(values / 255, RGB, (UNASSOCIATED,)[: int(alpha)]), 25)
    for whole, rows in [tuple(both(tmp_path / "a.webp"))] if is_installed() else []:
        assert np.array_equal(whole, rows)


# Sixteen bits that are fewer.


def sixteen(kind: str, values: Array, more: bytes = b"", tags: dict | None = None) -> bytes:
    if kind == "PNG":
        return png(values, 16, {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]], more)
    return tiff_bytes(
        values, RGB if values.shape[2] > 2 else BLACK_IS_ZERO, bits=16, big_endian=kind == "big-endian TIFF", more=tags
    )


@pytest.fixture
def said() -> Iterator[list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lines: list[str] = []
        yield lines
        lines += [str(one.message) for one in caught]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF"])
@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_in_sixteen_are_read_as_such(tmp_path: Path, kind: str, bands: int, bits: int) -> None:
    values = stored(light(bands), bits).astype(np.uint16)
    expected = seen(light(bands), RGB if bands > 2 else BLACK_IS_ZERO, (UNASSOCIATED,)[: int(bands == 4)])
    with pytest.warns(UserWarning, match=rf"a\.img: 16-bit .* stop at {2**bits - 1}: read as {bits}-bit \("):
        check(tmp_path / "a.img", sixteen(kind, values), expected, 1.6)
    assert set(module.GUESSED_BITS) == {bits}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        read_image(tmp_path / "a.img")
    if bands == 4:  # alpha may have all 16 bits nevertheless
        values[:, :, 3] = stored(light(4), 16)[:, :, 3]
        check(tmp_path / "a.img", sixteen(kind, values), expected, 1.6)


@pytest.mark.filterwarnings("ignore:.*16-bit file whose")
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_fewer_bits_stand_upright(tmp_path: Path, kind: str) -> None:
    values = stored(light(3), 12).astype(np.uint16)
    turned = np.rot90(values)
    exif = Image.Exif()
    exif[0x0112] = 6
    late = chunk(b"eXIf", exif.tobytes()[6:])
    check(tmp_path / "a.img", sixteen(kind, turned, late, {274: (6,)}), seen(light(3), RGB))


def test_what_fills_sixteen_bits_is_not_guessed(tmp_path: Path) -> None:
    dark = stored(light(1) * 0.2, 8).astype(np.uint16) * 257  # 8 bits, as they are brought to 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(tmp_path / "a.png", sixteen("PNG", dark), np.repeat(dark / 257, 3, -1))
        check(tmp_path / "b.png", sixteen("PNG", dark * 0), np.zeros((HEIGHT, WIDTH, 3)))
        one = stored(light(1), 12).astype(np.uint16)
        one[5, 6] = 40_000
        check(tmp_path / "c.png", sixteen("PNG", one), np.repeat(one / 257, 3, -1))
    assert not module.GUESSED_BITS


def test_what_the_file_says_is_no_guess(tmp_path: Path) -> None:
    dark = stored(light(1) * 0.2, 12).astype(np.uint16)
    twelve, full = np.repeat(dark * (255 / 4095), 3, -1), np.repeat(dark / 257, 3, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(tmp_path / "a.png", sixteen("PNG", dark, chunk(b"sBIT", b"\x0c")), twelve)
        check(tmp_path / "b.png", sixteen("PNG", dark, chunk(b"sBIT", b"\x10")), full)
        check(tmp_path / "c.tif", sixteen("TIFF", dark, tags={281: (4095,)}), twelve)
        check(tmp_path / "d.tif", sixteen("TIFF", dark, tags={281: (65535,)}), full)
        shifted = stored(light(1) * 0.2, 16) & 0xFFF0  # as the standard wants 12 bits to be stored
        check(tmp_path / "e.png", sixteen("PNG", shifted, chunk(b"sBIT", b"\x0c")), np.repeat(shifted / 257, 3, -1))
        (tmp_path / "f.pgm").write_bytes(b"P5 41 33 65535\n" + dark.astype(">u2").tobytes())
        assert np.abs(read_image(tmp_path / "f.pgm") - full).max() <= 1
        (tmp_path / "f.pgm").write_bytes(b"P5 41 33 4095\n" + dark.astype(">u2").tobytes())
        assert np.abs(read_image(tmp_path / "f.pgm") - twelve).max() <= 1
    assert not module.GUESSED_BITS


def test_a_value_range_says_it(tmp_path: Path) -> None:
    dark = stored(light(3) * 0.2, 12).astype(np.uint16)
    for low, high in ((0, 511), (0, 1023), (100, 4095), (0, 65535)):
        expected = ((dark - float(low)) * 255 / (high - low)).clip(0, 255)
        for kind in ("PNG", "TIFF"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                check(tmp_path / "a.img", sixteen(kind, dark), expected, rule=ImageRule((low, high)))


@pytest.mark.filterwarnings("ignore:.*16-bit file whose")
def test_bits_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    dark = stored(light(3), 12).astype(np.uint16)
    check(tmp_path / "a.tif", tiff_bytes(dark, RGB, bits=16, planar=True), dark * (255 / 4095))
    check_refused(tmp_path / "a.png", sixteen("PNG", dark[:, :, :2]), "16 bits in planes, or of gray .*; expected")


# What is left out of a TIFF or an animation.


@pytest.mark.parametrize(
    ("bands", "photometric", "extra", "message"),
    [
        (4, RGB, (UNSPECIFIED,), "bands 1 to 3 of 4 are read"),
        (5, RGB, (UNASSOCIATED, UNSPECIFIED), "bands 1 to 4 of 5 are read"),
        (2, BLACK_IS_ZERO, (UNSPECIFIED,), "band 1 of 2 is read"),
        (5, CMYK, (UNSPECIFIED,), "bands 1 to 4 of 5 are read"),
        (4, RGB, (UNASSOCIATED,), ""),
        (3, RGB, (), ""),
        (1, BLACK_IS_ZERO, (), ""),
    ],
)
def test_bands_that_are_left_out_are_named_once(
    tmp_path: Path, bands: int, photometric: int, extra: tuple[int, ...], message: str
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_bytes(stored(light(bands), 8), photometric, extra=extra))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        both(path)
        read_size(path)
    expected = f"{path}: {message}; the others are left out"
    assert [str(one.message) for one in caught] == ([expected] if message else [])


def test_pages_that_are_left_out_are_named_once(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)) for value in (10, 20, 30, 40)]
    path = tmp_path / "stack.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert all((picture == 10).all() for picture in both(path))
    assert [str(one.message) for one in caught] == [f"{path}: page 1 of 4 is read; the others are left out"]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_frames_that_are_left_out_are_named_once(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)) for value in (10, 200, 30, 40)]
    path, still = tmp_path / f"anim.{kind.lower()}", tmp_path / f"still.{kind.lower()}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(still, lossless=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert all((picture == 10).all() for picture in (*both(path), *both(still)))
    assert [str(one.message) for one in caught] == [f"{path}: frame 1 of 4 is read; the others are left out"]


def test_smaller_copies_and_a_circle_of_pages_are_no_pages(tmp_path: Path) -> None:
    page = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8))
    small = page.resize((9, 9))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    page.save(tmp_path / "overviews.tif", save_all=True, append_images=[small])
    circle = bytearray(tiff_bytes(stored(light(1), 8), BLACK_IS_ZERO))
    count = int.from_bytes(circle[8:10], "little")
    circle[10 + 12 * count : 14 + 12 * count] = (8).to_bytes(4, "little")
    (tmp_path / "circle.tif").write_bytes(circle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("overviews.tif", "circle.tif"):
            read_image(tmp_path / name)
