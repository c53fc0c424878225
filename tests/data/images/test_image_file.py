"""Truncated files, decompression bombs and arbitrary bytes are refused by name."""

import os
import re
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from atrous.data.datasets.dataset import open_dataset
from atrous.data.images.image_io import read_image, read_mask, read_note, read_size, write_image
from atrous.data.images.samples import ImageRule
from atrous.data.labels import VOC
from pictures import chunk, encoded, picture
from reliability import counted, record

Array = np.ndarray


ENCODINGS: list[tuple[str, dict[str, object]]] = [
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
]


def refused_cuts(path: Path, kind: str, options: dict, points: int) -> int:
    """Cut a picture at so many points and in its last bytes; how often each is refused, all of them being."""
    whole = encoded(kind, **options)
    path.write_bytes(whole)
    assert read_image(path).shape == (48, 64, 3)
    cuts = {len(whole) * step // points for step in range(points)} | {len(whole) - back for back in (1, 2, 3, 8, 20)}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=r"a\.img: .*expected") as caught:
                read_image(path)
        assert "\n" not in str(caught.value)
    return len(cuts)


@pytest.mark.parametrize(("kind", "options"), ENCODINGS)
def test_truncated_files_are_refused(tmp_path: Path, kind: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other packages leave it
    refused_cuts(tmp_path / "a.img", kind, options, 16)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.slow
def test_truncated_files_are_refused_at_64_points_and_never_trained_on(tmp_path: Path, make_data: Callable) -> None:
    refused = sum(refused_cuts(tmp_path / "a.img", kind, options, 64) for kind, options in ENCODINGS)
    root = make_data(tmp_path / "data", {"train": 2})
    for path in (root / "images" / "train" / "train0.png", root / "masks" / "train" / "train0.png"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"{path.name}: .*expected"):
            open_dataset(str(root), "train")[0]
        path.write_bytes(whole)
    record("truncated image", f"{refused} of {refused} cuts in {len(ENCODINGS)} encodings refused by name")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG", "BMP", "TIFF"])
def test_what_stands_behind_a_whole_picture_is_not_minded(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.img").write_bytes(encoded(kind))
    expected = read_image(tmp_path / "a.img")
    (tmp_path / "a.img").write_bytes(encoded(kind) + os.urandom(10_000))
    assert np.array_equal(read_image(tmp_path / "a.img"), expected)


def png_header(width: int, height: int, extra: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def with_size(kind: str, width: int, height: int, **options: object) -> bytes:
    """A small JPEG or BMP whose header says that it is large."""
    content = bytearray(encoded(kind, **options))
    if kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    else:
        start = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def tiff(**tags: int) -> bytes:
    numbers = {"width": 256, "height": 257, "bits": 258, "packing": 259, "gray": 262, "strip": 273, "samples": 277}
    numbers |= {"rows": 278, "bytes": 279, "tile_width": 322, "tile_height": 323, "tile": 324, "tile_bytes": 325}
    pairs = {"bits": 8, "packing": 1, "gray": 1, "samples": 1, **tags}
    entries = [struct.pack("<HHII", numbers[name], 4, 1, value) for name, value in pairs.items()]
    entries.sort(key=lambda entry: entry[:2][::-1])
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(1000)


def gif(screen: int, frame: int) -> bytes:
    head = struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + bytes(6)
    return b"GIF89a" + head + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\2\2\x4c\1\0;"


def bombs() -> dict[str, bytes]:
    """Small files that ask for gigabytes."""
    strips = {"strip": 200, "rows": 100_000, "bytes": 800}
    million, more = zlib.compress(bytes(10**6)), zlib.compress(bytes(2 * 10**7))
    return {
        "png": png_header(100_000, 100_000),
        "png of the largest size": png_header(2**31 - 1, 2**31 - 1),
        "png just above the limit": png_header(13_378, 13_378),
        "png of 1 bit": png_header(2**20, 2**20, bits=1, colour=0),
        "png with a text of 20 MB": png_header(8, 8, chunk(b"zTXt", b"a\0\0" + more)),
        "png with 200 texts": png_header(8, 8, b"".join(chunk(b"zTXt", b"%d\0\0" % i + million) for i in range(200))),
        "png with a profile of 20 MB": png_header(8, 8, chunk(b"iCCP", b"a\0\0" + more)),
        "gif": gif(65_535, 1),
        "gif with a frame beyond it": gif(1, 65_535),
        "bmp": with_size("BMP", 2**31 - 1, 1000),
        "bmp from the top": with_size("BMP", 60_000, -60_000),
        "tiff": tiff(width=100_000, height=100_000, **strips),
        "tiff, packed": tiff(width=100_000, height=100_000, **strips | {"packing": 5}),
        "tiff of one tile": tiff(
            width=10, height=10, packing=5, tile_width=60_000, tile_height=60_000, tile=200, tile_bytes=800
        ),
        "tiff of many samples": tiff(width=10, height=10, **strips | {"samples": 60_000}),
        "jpeg": with_size("JPEG", 65_500, 65_500),
        "progressive jpeg": with_size("JPEG", 65_500, 65_500, progressive=True),
        "webp": b"RIFF\x1e\0\0\0WEBPVP8L\x12\0\0\0\x2f" + struct.pack("<I", 16_383 | 16_383 << 14) + bytes(13),
        "ppm": b"P6\n100000 100000\n255\n" + bytes(100),
        "pbm": b"P4\n1000000 1000000\n" + bytes(100),
    }


def peak_megabytes(since_now: bool = False) -> float:
    """The most memory that this process has held, in MB, anew from here on if asked."""
    if since_now:
        Path("/proc/self/clear_refs").write_text("5")
    lines = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) / 1024


def test_bombs_are_refused_before_any_decoding(tmp_path: Path) -> None:
    assert len(bombs()) == 20
    for name, content in bombs().items():
        path = tmp_path / f"{name}.img"
        path.write_bytes(content)
        size_alone = not name.startswith(("png with", "tiff of"))
        for read in (read_image, read_mask, *([read_size] if size_alone else [])):
            with pytest.raises(ValueError, match=r"\.img: .*expected") as caught:
                read(path)
            assert not size_alone or re.search(r"\d+x\d+ pixels; expected at most 178956970", str(caught.value))


@pytest.mark.slow
def test_bombs_take_neither_time_nor_memory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory is not told on this system")
    times, peaks = [], []
    for name, content in bombs().items():
        path = tmp_path / f"{name}.img"
        path.write_bytes(content)
        before, tries = peak_megabytes(since_now=True), []
        while len(tries) < 3 or (min(tries) > 0.1 and len(tries) < 10):  # the best, for others use the machine
            began = time.perf_counter()
            with pytest.raises(ValueError, match="expected"):
                read_image(path)
            tries.append(time.perf_counter() - began)
        times.append(min(tries))
        peaks.append(peak_megabytes() - before)
    with capfd.disabled():
        record("decompression bomb", f"20 of 20 refused, {1000 * max(times):.0f} ms and {max(peaks):.0f} MB at most")
    assert max(times) < 0.1 and max(peaks) < 50


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
    cases = {
        b"": "not an image, but empty",
        b"hello": "not an image of a known format",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "not an image, but EPS",
        b"\n<!DOCTYPE html><html>404": "not an image, but a web page",
        b"version https://git-lfs.github.com/spec/v1\n": "not an image, but a pointer of Git LFS",
        b"\x89PNG\r\n\x1a\n" + bytes(40): "not an image, but the start of a damaged PNG",
        encoded("TIFF")[:20]: "not an image, but the start of a damaged TIFF",
        b"\x01" + os.urandom(200): "not an image of a known format",
    }
    for content, message in cases.items():
        (tmp_path / "x.jpg").write_bytes(content)
        for read in (read_image, read_mask):
            with pytest.raises(ValueError, match=rf"x\.jpg: {message}.*; expected") as caught:
                read(tmp_path / "x.jpg")
            assert "\n" not in str(caught.value)


def test_files_of_every_other_kind_are_refused_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("gone.jpg")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    cases = {
        tmp_path / "pipe.jpg": "not a file",
        tmp_path / "folder.jpg": "not a file",
        Path("/dev/zero"): "not a file",
        Path("/dev/stdin"): "not a file|not an image|no such",
        tmp_path / "loop.jpg": "symbolic links",
        tmp_path / "photo.heic": "expected a whole, sound image|HEIC needs pillow-heif: pip install",
    }
    for path, message in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=f"{path.name}: .*({message})") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg: no such file"):
        read_image(tmp_path / "nowhere.jpg")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_image(path, picture())

    def denied(name: object, *rest: object) -> int:
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr("atrous.data.images.image_file.os.open", denied)  # for root may read everything
    with pytest.raises(ValueError, match=r"a\.png: .*Permission denied.*expected"):
        read_image(path)


def test_a_file_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Image.Image.size.fget

    def cut(image: Image.Image) -> tuple[int, int]:
        os.truncate(path, 20_000)
        return real(image)

    for kind in ("PNG", "JPEG", "BMP", "TIFF"):
        path = tmp_path / f"{kind}.img"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(path, kind)
        monkeypatch.setattr(Image.Image, "size", property(cut))
        with pytest.raises(ValueError, match=r"\.img: .*expected"):
            read_image(path)
        monkeypatch.undo()


Image.init()
KINDS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "AVIF")
WHOLE = {kind: encoded(kind) for kind in KINDS if kind in Image.SAVE}  # AVIF in Pillow 11.3 and later
WHOLE |= {f"{kind} of ids": encoded(kind, mode="P") for kind in ("PNG", "GIF", "TIFF", "BMP")}
MUTATED = st.builds(
    lambda kind, changes, cut, more: mutated(WHOLE[kind], changes, cut) + more,
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8),
    st.none() | st.integers(0, 1 << 16),
    st.just(b"") | st.binary(max_size=40),
)
STARTS = st.sampled_from([content[:size] for content in WHOLE.values() for size in (0, 4, 12, 40)])
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def mutated(content: bytes, changes: list[tuple[int, int]], cut: int | None) -> bytes:
    """Half of the changes fall into the header, where they do most."""
    changed = bytearray(content)
    for number, (place, value) in enumerate(changes):
        changed[place % (len(changed) if number % 2 else min(len(changed), 200))] = value
    return bytes(changed if cut is None else changed[: cut % len(changed)])


def read_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "a.img"
    path.write_bytes(content)
    readers: list[Callable] = [
        read_image,
        read_mask,
        lambda path, **limit: read_mask(path, palette=VOC.palette, **limit),
    ]
    for read in readers:
        try:
            assert read(path, max_pixels=10**6).dtype == np.uint8
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error) and "expected" in str(error)
    try:
        assert read_size(path) and isinstance(read_note(path), str)
    except ValueError as error:
        assert str(error).startswith(str(path))


@settings(FUZZ, max_examples=250)
@given(content=MUTATED | st.builds(lambda start, rest: start + rest, STARTS, st.binary(max_size=200)))
def test_any_bytes_are_a_picture_or_a_value_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    read_or_refused(tmp_path_factory.getbasetemp(), content)


@pytest.mark.slow
def test_ten_thousand_files_are_pictures_or_value_errors(tmp_path: Path) -> None:
    count, seen = counted(10_000), [0]

    @settings(FUZZ, max_examples=count)
    @given(content=MUTATED | st.builds(lambda start, rest: start + rest, STARTS, st.binary(max_size=200)))
    def many(content: bytes) -> None:
        seen[0] += 1
        read_or_refused(tmp_path, content)

    many()
    record("fuzzing", f"images and masks: {seen[0]:,} files")


def colours() -> np.ndarray:
    return np.kron(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))


def refused_at_every_cut(content: bytes) -> None:
    for cut in [*np.linspace(0, len(content) - 1, 64).astype(int), len(content) - 2]:
        with pytest.raises(ValueError, match="expected") as caught:
            read_image(content[:cut])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"tile_size": (32, 32)}, {"no_jp2": True}])
def test_jpeg_2000_is_read_whole_or_refused(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "a.jp2"
    Image.fromarray(colours()).save(path, "JPEG2000", **options)
    assert np.array_equal(read_image(path), colours()) and read_size(path) == (48, 64)
    refused_at_every_cut(path.read_bytes())
    if "tile_size" in options:  # of 16 bits, Pillow writes tiles wrong: OpenCV reads the same other values
        return
    gray = colours()[:, :, 0].astype(np.uint16) * 16
    Image.fromarray(gray).save(path, "JPEG2000", **options)
    assert np.array_equal(read_image(path, rule=ImageRule((0, 4080)))[:, :, 1], colours()[:, :, 0])


def test_heic_is_read_upright_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image, more in (("a", colours(), {}), ("b", np.rot90(colours()).copy(), {"exif": exif.tobytes()})):
        path = tmp_path / f"{name}.heic"
        pillow_heif.from_pillow(Image.fromarray(image)).save(path, quality=95, **more)
        assert read_size(path) == (48, 64)
        assert np.abs(read_image(path).astype(int) - colours()).mean() < 2
    refused_at_every_cut((tmp_path / "a.heic").read_bytes())
    with pytest.raises(ValueError, match="64x48 pixels; expected at most 100"):
        read_image(tmp_path / "a.heic", max_pixels=100)
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])  # another library may register it
    with pytest.raises(ValueError, match=r"a.heic: HEIC needs pillow-heif: pip install 'atrous\[heif\]'"):
        read_image(tmp_path / "a.heic")


def test_a_jpeg_of_12_bits_is_refused_by_name() -> None:
    content = bytearray(encoded("JPEG"))
    place = content.index(b"\xff\xc0")
    content[place + 1], content[place + 4] = 0xC1, 12
    with pytest.raises(ValueError, match="a JPEG of 12 bits, which is not read; expected 8 bits, or PNG or TIFF of 16"):
        read_image(bytes(content))
