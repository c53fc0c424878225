"""A picture that shows how it is turned, in every mode and orientation, with what a person sees of it."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

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


def as_mode(mode: str, image: Array | None = None) -> tuple[Image.Image, Array]:
    """A picture in a mode, and what a person sees, RGB."""
    image = picture() if image is None else image
    rgb, light = Image.fromarray(image), gray(image)
    if mode == "I;16":
        return Image.fromarray(light.astype(np.uint16) * 257), np.stack([light] * 3, -1)
    if mode in ("RGBA", "LA", "P+transparency"):
        alpha = np.full(light.shape, 255, dtype=np.uint8)
        alpha[: len(light) // 2, light.shape[1] // 2 :] = 0
        base = rgb.convert("L").convert("RGB") if mode == "LA" else rgb
        seen = np.array(base)
        seen[alpha == 0] = 255
        rgb.putalpha(Image.fromarray(alpha))
        if mode == "P+transparency":
            indexed = rgb.quantize(64)
            colours = np.array(indexed.convert("RGBA"))
            return indexed, np.where(colours[:, :, 3:] == 0, 255, colours[:, :, :3]).astype(np.uint8)
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


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """A noisy picture of 48 rows and 64 columns as a file of a format."""
    rng = np.random.default_rng(0)
    noisy = (picture(48, 64) // 2 + rng.integers(0, 60, (48, 64, 3))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
