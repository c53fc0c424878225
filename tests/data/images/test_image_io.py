"""Every mode and orientation of an image is read; masks keep their ids; writes are atomic."""

import io
import os
import resource
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from atrous.atomic import sweep
from atrous.data.images.image_io import read_image, read_mask, read_size, to_tensor, write_image, write_mask
from atrous.data.labels import CAMVID, VOC, voc_palette
from pictures import MODES, UNTURN, as_mode, chunk, encoded, gray, picture
from reliability import counted, record

Array = np.ndarray


@pytest.mark.parametrize("orientation", UNTURN)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_every_orientation_is_read_as_seen(tmp_path: Path, mode: str, orientation: int) -> None:
    image, seen = as_mode(mode)
    stored = UNTURN[orientation](image)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.img"
    stored.save(path, MODES[mode], exif=exif)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.shape == seen.shape
    assert read_size(path) == seen.shape[:2]
    assert np.abs(pixels.astype(int) - seen).max() <= 1
    with path.open("rb") as file:  # by its path, Pillow 13 maps a raw TIFF with sides exchanged
        assert (read_image(Image.open(file)) == pixels).all()


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
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        read = read_image((to_tensor(image) / 255).to(dtype).requires_grad_())
        assert np.abs(read.astype(int) - image).max() <= (1 if dtype == torch.bfloat16 else 0)
    half = np.concatenate([np.zeros_like(image), np.full((30, 40, 1), 128, np.uint8)], axis=2)
    assert (read_image(half) == 127).all()


def file_like(content: bytes) -> object:
    """A stream that cannot be rewound, as of a download."""

    class Stream(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:  # type: ignore[override]
            nonlocal content
            part, content = (content, b"") if size < 0 else (content[:size], content[size:])
            return part

    return Stream()


WAYS: dict[str, Callable[[Path], object]] = {
    "path": lambda path: path,
    "str": str,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "file": lambda path: path.open("rb"),
    "stream": lambda path: file_like(path.read_bytes()),
    "PIL": lambda path: Image.open(path),
    "PIL of a file object": lambda path: Image.open(io.BytesIO(path.read_bytes())),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_every_way_to_give_a_file_is_the_same_door(tmp_path: Path, kind: str, way: str, monkeypatch) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(encoded(kind))
    assert np.array_equal(read_image(WAYS[way](path)), read_image(path))
    if "PIL" not in way:
        assert read_size(WAYS[way](path)) == (48, 64)
    with pytest.raises(ValueError, match="64x48 pixels; expected at most 100"):
        read_image(WAYS[way](path), max_pixels=100)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other packages leave it
    path.write_bytes(encoded(kind)[:-9] if kind in ("PNG", "GIF") else encoded(kind)[:-400])
    try:
        source = WAYS[way](path)
    except OSError:
        return  # Pillow itself does not open a WebP that is cut
    with pytest.raises(ValueError, match="expected") as caught:
        read_image(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_formats_that_are_not_allowed_stay_out_by_every_way(tmp_path: Path, way: str) -> None:
    for kind, name in (("EPS", "EPS"), ("TGA", "a known format"), ("PCX", "a known format")):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(picture()).save(path, kind)
        with pytest.raises(ValueError, match=f"{kind if 'PIL' in way else name}; expected AVIF, BMP"):
            read_image(WAYS[way](path))
    if "PIL" in way:  # pixels that have left their file are pixels
        assert read_image(WAYS[way](path).convert("RGB")).shape == (30, 40, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_the_size_is_in_the_header(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.img").write_bytes(encoded(kind))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("the pixels were decoded"))
    assert read_size(tmp_path / "a.img") == (48, 64)


def test_a_pil_image_is_read_as_it_is(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", picture())
    with Image.open(tmp_path / "a.png") as image:
        read_image(image)
        assert np.array_equal(np.asarray(image), picture()), "it can be loaded afterwards"
        image.paste((1, 2, 3), (0, 0, 40, 30))
        assert (read_image(image) == (1, 2, 3)).all(), "not its file, once it has been changed"
    frames = [Image.fromarray(picture() // part) for part in (1, 2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as image:
        image.seek(1)
        assert np.abs(read_image(image).astype(int) - picture() // 2).max() <= 8
    assert (read_image(Image.new("I;16", (3, 2), 40_000)) == 156).all()


def test_what_a_person_may_give_by_mistake_is_told(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", picture())
    with (tmp_path / "a.png").open(encoding="latin-1") as text, pytest.raises(ValueError, match="mode 'rb'"):
        read_image(text)  # type: ignore[arg-type]
    with (tmp_path / "a.png").open("rb") as file:
        file.read()
        assert read_image(file).shape == (30, 40, 3), "from its start"
    with pytest.raises(ValueError, match=r"a\.png: .*closed file.*expected"):
        read_image(file)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 2, 2), np.uint8), r"shape \(2, 2, 2\)"),
        (np.zeros((0, 2, 3), np.uint8), "not empty"),
        (np.zeros((2, 2, 3), np.int32), "int32; expected uint8"),
        (np.full((2, 2), np.nan), "floats from nan"),
        (np.full((2, 2), 255.0), "floats from 255"),
        (np.zeros((3, 5, 7), np.uint8), r"shape \(3, 5, 7\); .*: its channels come first, array.transpose\(1, 2, 0\)"),
        (np.zeros((2, 5, 7, 3), np.uint8), "expected H,W .*: a batch, of which one image is taken at a time"),
        (np.zeros((2, 2, 3), np.uint32), "array of uint32; expected uint8, or float in 0 to 1"),
        (torch.zeros(2, 2), "3,H,W"),
        (torch.zeros(5, 7, 3), r"shape \(5, 7, 3\); .*: its channels come last, tensor.permute\(2, 0, 1\)"),
        (torch.zeros(1, 3, 2, 2), "expected 3,H,W: a batch, of which one image is taken at a time"),
        (torch.zeros(3, 2, 2, dtype=torch.complex64), "complex64"),
        ([[1, 2]], "type list; expected a path, bytes, file object, PIL image, array or tensor"),
        (7, "type int"),
    ],
)
def test_other_arrays_are_refused(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_image(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_counts(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(picture() // part) for part in (1, 2, 3)]
    frames[0].save(tmp_path / "a.img", kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(read_image(tmp_path / "a.img").astype(int) - picture()).max() <= 8
    whole = (tmp_path / "a.img").read_bytes()
    if kind != "TIFF":  # whose pages stand for themselves
        (tmp_path / "a.img").write_bytes(whole[:-2])
        with pytest.raises(ValueError, match="expected"):
            read_image(tmp_path / "a.img")


def test_names_and_blocks_of_any_kind(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 60_000
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif, icc_profile=os.urandom(500_000), quality=95)
    assert read_image(tmp_path / "a.jpg").shape == (40, 30, 3) and read_size(tmp_path / "a.jpg") == (40, 30)
    for name in (b"new\nline.png", b"\xff\xfe.png", "ü ñ 图.png".encode(), b"-rf [0] %s {}.png", b" .png"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        write_image(path, picture())
        assert np.array_equal(read_image(path), picture())
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match="truncated") as caught:
            read_image(path)
        assert str(path) in str(caught.value)


def test_what_killed_writers_left_is_swept_away(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = tmp_path / f".a.png.{ended.pid}.{2**40}.tmp"
    others = [f".b.png.{os.getpid()}.1.tmp", "a.png", ".notes.tmp", ".a.b.c.tmp", f"a.png.{ended.pid}.1.tmp"]
    for path in (left, *(tmp_path / name for name in others)):
        path.write_text("")
    sweep(tmp_path)
    sweep(tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_to_tensor_copies() -> None:
    image = picture()
    tensor = to_tensor(image)
    assert tensor.dtype == torch.uint8 and tensor.shape == (3, 30, 40) and tensor.is_contiguous()
    image[:] = 7
    assert tensor[0, 0, 0] == 255
    assert to_tensor(gray(picture())).shape == (30, 40)
    with pytest.raises(ValueError, match="expected uint8"):
        to_tensor(image.astype(np.float32))


def png_of_bits(ids: Array, bits: int, colour: int) -> bytes:
    """A PNG of one channel as the specification has it: colour 0 is gray, 3 is palette."""

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
    mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == np.uint8 and (mask == ids).all()


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "PNG"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_of_other_lossless_formats_keep_every_id(tmp_path: Path, kind: str, mode: str) -> None:
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette([part for colour in voc_palette(256) for part in colour])
    image.save(tmp_path / "m", kind, **({"optimize": False} if kind == "GIF" else {}))
    assert (read_mask(tmp_path / "m") == ids).all()


@pytest.mark.parametrize(
    ("bits", "compression"),
    [(1, None), (2, None), (4, None), (8, None), (1, "tiff_lzw"), (8, "tiff_lzw"), (1, "group4")],
)
def test_ids_of_a_white_is_zero_tiff_are_as_stored(tmp_path: Path, bits: int, compression: str | None) -> None:
    ids = np.arange(256).reshape(16, 16) % 2**bits
    each = 8 // bits
    packed = sum(ids[:, i::each] << (8 - bits * (i + 1)) for i in range(each)).astype(np.uint8)
    if compression is None:
        (tmp_path / "m.tif").write_bytes(white_is_zero(packed.tobytes(), bits))
    else:
        image = Image.fromarray(~ids.astype(bool) if bits == 1 else 255 - packed)
        image.save(tmp_path / "m.tif", compression=compression, tiffinfo={262: 0})
    with Image.open(tmp_path / "m.tif") as image:
        assert image.tag_v2[262] == 0 and image.tag_v2.get(258, (1,)) == (bits,)
    assert (read_mask(tmp_path / "m.tif") == ids).all()


def white_is_zero(data: bytes, bits: int) -> bytes:
    """A TIFF of 16x16 in one strip, without compression, PhotometricInterpretation 0."""
    tags = [(256, 16), (257, 16), (258, bits), (259, 1), (262, 0), (273, 8), (277, 1), (278, 16), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4


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
    write_image(tmp_path / "a.jpg", picture())
    before = (tmp_path / "a.jpg").read_bytes()

    def half(self: Image.Image, file: io.BufferedWriter, *rest: object, **options: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="No space"):
        write_image(tmp_path / "a.jpg", picture(8, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"] and (tmp_path / "a.jpg").read_bytes() == before


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "bmp"])
def test_an_error_of_the_disk_names_the_file(tmp_path: Path, kind: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_image(tmp_path / f"a.{kind}", np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / f"a.{kind}") and caught.value.strerror
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(1, 1), (256, 3), (257, 640), (700, 5)])
def test_a_written_png_holds_the_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    flat = np.full((*size, 3), 200, dtype=np.uint8)
    for pixels in (noise, flat):
        write_image(path := tmp_path / "a.png", pixels)
        with Image.open(path) as image:
            image.load()
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), pixels)


def test_a_png_of_other_kinds_goes_by_pillow(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        write_image(tmp_path / "a.png", Image.new("RGB", (0, 5)))
    image = Image.fromarray(picture())
    image.info["icc_profile"] = b"profile"
    write_image(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as read:
        assert read.info["icc_profile"] == b"profile" and np.array_equal(np.asarray(read), picture())


def test_write_image_by_suffix(tmp_path: Path) -> None:
    for name in ("a.png", "a.JPG", "a.webp", "a.bmp", "a.tif"):
        write_image(tmp_path / name, picture())
        assert read_image(tmp_path / name).shape == (30, 40, 3)
    for name in ("a.txt", "a", "a.pdf", "a.eps"):
        with pytest.raises(ValueError, match="no image format"):
            write_image(tmp_path / name, picture())


@pytest.mark.slow
def test_ids_in_every_format_of_masks_are_kept(tmp_path: Path) -> None:
    kept, rng = 0, np.random.default_rng(3)
    for bits, colour in [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)]:
        for _ in range(counted(100)):
            ids = rng.integers(0, 2 ** min(bits, 8), (16, 16))
            (tmp_path / "m.png").write_bytes(png_of_bits(ids, bits, colour))
            assert (read_mask(tmp_path / "m.png") == ids).all()
            kept += 1
    for _ in range(counted(100)):
        ids = rng.choice([*range(21), 255], (16, 16)).astype(np.uint8)
        write_image(tmp_path / "c.png", np.array(voc_palette(256), dtype=np.uint8)[ids])
        assert (read_mask(tmp_path / "c.png", palette=VOC.palette) == ids).all()
        kept += 1
    Image.fromarray(ids).save(tmp_path / "m.jpg", quality=100)
    with pytest.raises(ValueError, match=r"m\.jpg: a mask in JPEG"):
        read_mask(tmp_path / "m.jpg")
    record("mask formats", f"{kept:,} masks in 10 formats: every id kept; a JPEG mask refused")
