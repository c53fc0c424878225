"""Every mode, orientation and fault of a file; masks keep their ids; the overlay lies on the picture."""

import io
import itertools
import os
import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from atrous.data.image import IMAGENET, read_image, read_mask, read_size, to_tensor, write_image, write_mask
from atrous.data.labels import CAMVID, VOC, voc_palette

Array = np.ndarray


def picture(height: int = 30, width: int = 40) -> Array:
    """Four flat quarters, dark to light, so that modes and orientations can be told apart; noise-free."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[: height // 2, : width // 2] = (255, 255, 255)
    image[: height // 2, width // 2 :] = (200, 40, 40)
    image[height // 2 :, : width // 2] = (40, 200, 40)
    return image


def gray(image: Array) -> Array:
    return np.asarray(Image.fromarray(image).convert("L"))


def as_mode(mode: str) -> tuple[Image.Image, Array]:
    """The picture in a mode, and what a person sees, RGB."""
    rgb = Image.fromarray(picture())
    light = gray(picture())
    if mode == "I;16":
        return Image.fromarray(light.astype(np.uint16) * 257), np.stack([light] * 3, -1)
    if mode in ("RGBA", "LA", "P+transparency"):
        alpha = np.full(light.shape, 255, dtype=np.uint8)
        alpha[:15, 20:] = 0
        base = rgb.convert("L").convert("RGB") if mode == "LA" else rgb
        seen = np.array(base)
        seen[:15, 20:] = 255
        rgb.putalpha(Image.fromarray(alpha))
        if mode == "P+transparency":
            found = rgb.quantize(8)
            return found, seen
        return rgb.convert(mode), seen
    if mode == "1":
        bits = light > 127
        return Image.fromarray(bits), np.stack([bits * np.uint8(255)] * 3, -1)
    converted = rgb.convert(mode)
    return converted, np.asarray(converted.convert("RGB"))


MODES = {
    "RGB": "PNG",
    "L": "PNG",
    "LA": "PNG",
    "RGBA": "PNG",
    "P": "PNG",
    "P+transparency": "PNG",
    "CMYK": "TIFF",
    "I;16": "PNG",
    "1": "PNG",
}
UNTURN = {  # what a camera held that way stores, of what a person sees
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("orientation", UNTURN)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_every_orientation_is_read_as_seen(tmp_path: Path, mode: str, orientation: int) -> None:
    image, seen = as_mode(mode)
    stored = UNTURN[orientation](image)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.img"
    stored.save(path, MODES[mode], exif=exif)
    found = read_image(path)
    assert found.dtype == np.uint8 and found.shape == seen.shape
    assert read_size(path) == seen.shape[:2]
    assert np.abs(found.astype(int) - seen).max() <= 1
    with path.open("rb") as file:  # by its path, Pillow 13 maps a raw TIFF with sides exchanged
        assert (read_image(Image.open(file)) == found).all()


def test_jpeg_orientation_and_broken_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(picture(), 1)).save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=exif)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - picture()).mean() < 2
    Image.fromarray(picture()).save(tmp_path / "b.jpg", exif=b"Exif\0\0nonsense")
    assert read_image(tmp_path / "b.jpg").shape == (30, 40, 3)


def test_16_bits_are_scaled_and_floats_checked(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png")[:, :, 0] == np.rint(values / 257)).all()
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "b.tif")
    assert (read_image(tmp_path / "b.tif")[:, :, 0] == np.rint(values / 257)).all()
    Image.fromarray(values.astype(np.float32) / 65535).save(tmp_path / "c.tif")
    assert (read_image(tmp_path / "c.tif")[:, :, 0] == np.rint(values / 257)).all()
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "d.tif")
    with pytest.raises(ValueError, match=r"d\.tif: floats from 0 to 65535; expected 0 to 1"):
        read_image(tmp_path / "d.tif")


def test_arrays_and_tensors_are_read() -> None:
    image = picture()
    light = gray(image)
    assert (read_image(image) == image).all()
    assert (read_image(image / np.float32(255)) == image).all()
    assert (read_image(light) == light[:, :, None]).all()
    assert (read_image(to_tensor(image)) == image).all()
    assert (read_image(to_tensor(image).float() / 255) == image).all()
    half = np.concatenate([np.zeros_like(image), np.full((30, 40, 1), 128, np.uint8)], axis=2)
    assert (read_image(half) == 127).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 2, 2), np.uint8), r"shape \(2, 2, 2\)"),
        (np.zeros((0, 2, 3), np.uint8), "not empty"),
        (np.zeros((2, 2, 3), np.int32), "int32; expected uint8"),
        (np.full((2, 2), np.nan), "floats from nan"),
        (np.full((2, 2), 255.0), "floats from 255"),
        (torch.zeros(2, 2), "3,H,W"),
        (torch.zeros(1, 3, 2, 2), "3,H,W"),
        (7, "type int"),
    ],
)
def test_other_arrays_are_refused(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_image(source)  # type: ignore[arg-type]


def encoded(kind: str, **options: object) -> bytes:
    rng = np.random.default_rng(0)
    noisy = (picture(48, 64) // 2 + rng.integers(0, 60, (48, 64, 3))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
        ("PPM", {}),
    ],
)
def test_truncated_files_are_refused(tmp_path: Path, kind: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other packages leave it
    whole = encoded(kind, **options)
    path = tmp_path / "a.img"
    path.write_bytes(whole)
    assert read_image(path).shape == (48, 64, 3)
    cuts = {len(whole) * step // 64 for step in range(64)} | {len(whole) - back for back in (1, 2, 3, 8, 20)}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=r"a\.img: .*expected") as caught:
                read_image(path)
        assert "\n" not in str(caught.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_bombs_are_refused_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    for width, height in ((100_000, 100_000), (2**31 - 1, 2**31 - 1), (13_378, 13_378)):
        path.write_bytes(png_header(width, height))
        with pytest.raises(ValueError, match=f"bomb.png: {width}x{height} pixels; expected at most"):
            read_image(path)
        with pytest.raises(ValueError, match=f"{width}x{height} pixels"):
            read_mask(path)


def test_max_pixels_is_the_only_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write_image(tmp_path / "a.png", picture())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (30, 40, 3)
    with pytest.raises(ValueError, match="40x30 pixels; expected at most 1199"):
        read_image(tmp_path / "a.png", max_pixels=1199)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_threads_leave_pillows_settings_as_they_were(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", picture())
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:])
    threads = [threading.Thread(target=lambda: [read_image(tmp_path / "a.png") for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:]) == before


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jpg: no such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="not a file"):
        read_image(tmp_path)
    for content in (b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", os.urandom(200)):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.jpg: not an image"):
            read_image(tmp_path / "x.jpg")


def test_mutated_files_never_escape(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "a.img"
    for kind, _ in itertools.product(("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"), range(30)):
        content = np.frombuffer(encoded(kind), dtype=np.uint8).copy()
        places = rng.integers(0, min(len(content), 400), 4)
        content[places] = rng.integers(0, 256, 4)
        path.write_bytes(content.tobytes())
        for read in (read_image, read_mask):
            try:
                assert read(path, max_pixels=10**6).dtype == np.uint8
            except ValueError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)


def test_to_tensor_copies() -> None:
    image = picture()
    tensor = to_tensor(image)
    assert tensor.dtype == torch.uint8 and tensor.shape == (3, 30, 40) and tensor.is_contiguous()
    image[:] = 7
    assert tensor[0, 0, 0] == 255
    assert to_tensor(gray(picture())).shape == (30, 40)
    with pytest.raises(ValueError, match="expected uint8"):
        to_tensor(image.astype(np.float32))


def test_normalization_is_the_formula_and_fill_is_its_zero() -> None:
    image = to_tensor(picture())
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(IMAGENET(image), (image / 255 - mean) / std, rtol=0, atol=2e-6)
    assert IMAGENET(image[None]).shape == (1, 3, 30, 40) and IMAGENET(image).dtype == torch.float32
    assert IMAGENET.fill == (124, 116, 104)
    assert IMAGENET(torch.tensor(IMAGENET.fill, dtype=torch.uint8).view(3, 1, 1)).abs().max() < 0.01
    assert pickle.loads(pickle.dumps(IMAGENET)) == IMAGENET
    with pytest.raises(ValueError, match="expected uint8"):
        IMAGENET(image.float())


def png_of_bits(ids: Array, bits: int, colour: int) -> bytes:
    """A PNG of one channel as the specification has it: colour 0 is gray, 3 is palette."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in ids]
    else:
        each = 8 // bits
        rows = [sum(row[i::each].astype(int) << (8 - bits * (i + 1)) for i in range(each)) for row in ids]
        rows = [bytes(row.astype(np.uint8)) for row in rows]
    palette = chunk(b"PLTE", bytes(part for c in voc_palette(2**bits) for part in c)) if colour == 3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + palette + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_masks_of_every_depth_keep_every_id(tmp_path: Path, bits: int, colour: int) -> None:
    ids = np.arange(256).reshape(16, 16) % (2 ** min(bits, 8))
    (tmp_path / "m.png").write_bytes(png_of_bits(ids, bits, colour))
    found = read_mask(tmp_path / "m.png")
    assert found.dtype == np.uint8 and (found == ids).all()


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "PNG"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_of_other_lossless_formats_keep_every_id(tmp_path: Path, kind: str, mode: str) -> None:
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette([part for colour in voc_palette(256) for part in colour])
    image.save(tmp_path / "m", kind, **({"optimize": False} if kind == "GIF" else {}))
    assert (read_mask(tmp_path / "m") == ids).all()


def test_masks_that_cannot_be_trusted_are_refused(tmp_path: Path) -> None:
    ids = np.zeros((16, 16), dtype=np.uint8)
    Image.fromarray(ids).save(tmp_path / "m.jpg")
    with pytest.raises(ValueError, match=r"m\.jpg: a mask in JPEG, whose compression may change ids"):
        read_mask(tmp_path / "m.jpg")
    Image.fromarray(picture()).save(tmp_path / "m.tif", compression="jpeg")
    with pytest.raises(ValueError, match="compression may change ids"):
        read_mask(tmp_path / "m.tif")
    wide = np.zeros((4, 4), dtype=np.uint16)
    wide[0, :3] = 300
    Image.fromarray(wide).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png: mask has id 300 \(3 pixels out of range\)"):
        read_mask(tmp_path / "m.png")
    Image.fromarray(wide.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="mode F"):
        read_mask(tmp_path / "f.tif")
    (tmp_path / "t.png").write_bytes(encoded("PNG")[:900])
    with pytest.raises(ValueError, match=r"t\.png"):
        read_mask(tmp_path / "t.png")


def test_colour_maps_need_their_palette(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 20, 255]], dtype=np.uint8)
    colours = np.array(voc_palette(256), dtype=np.uint8)[ids]
    path = tmp_path / "m.png"
    write_image(path, colours)
    with pytest.raises(ValueError, match=r"mode RGB; expected .*palette"):
        read_mask(path)
    assert (read_mask(path, palette=VOC.palette) == ids).all()
    assert (read_mask(path, palette=VOC.palette, ignore=99)[0, 3]) == 99
    with pytest.raises(ValueError, match=r"m\.png: mask has colour \(0, 0, 0\) in 1 pixels"):
        read_mask(path, palette=CAMVID.palette)


def test_write_mask_round_trips_with_its_palette(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 20, 255]], dtype=np.int64)
    write_mask(tmp_path / "m.png", ids, VOC)
    assert (read_mask(tmp_path / "m.png") == ids).all()
    image = Image.open(tmp_path / "m.png")
    assert image.mode == "P"
    assert (np.asarray(image.convert("RGB"))[0] == np.array(voc_palette(256))[ids[0]]).all()
    for bad in (np.array([[21]]), np.array([[-1]]), np.array([[0.5]]), np.array([0])):
        with pytest.raises(ValueError, match=r"m2\.png: "):
            write_mask(tmp_path / "m2.png", bad, VOC)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", picture())
    before = (tmp_path / "a.png").read_bytes()

    def half(self: Image.Image, file: io.BufferedWriter, *rest: object, **options: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="No space"):
        write_image(tmp_path / "a.png", picture(8, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == before


def test_write_image_by_suffix(tmp_path: Path) -> None:
    for name in ("a.png", "a.JPG", "a.webp", "a.bmp", "a.tif"):
        write_image(tmp_path / name, picture())
        assert read_image(tmp_path / name).shape == (30, 40, 3)
    for name in ("a.txt", "a", "a.pdf", "a.eps"):
        with pytest.raises(ValueError, match="no image format"):
            write_image(tmp_path / name, picture())
