"""Write TIFFs of any bits, bands, photometric interpretation, layout and byte order."""

from __future__ import annotations

import struct
import zlib

import numpy as np

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def tiff_bytes(
    samples: np.ndarray,
    photometric: int,
    *,
    bits: int = 8,
    extra: tuple[int, ...] = (),
    planar: bool = False,
    tile: int = 0,
    deflate: bool = False,
    big_endian: bool = False,
    sample_format: int = UNSIGNED,
    more: dict[int, tuple[int, ...] | bytes] | None = None,
) -> bytes:
    """A TIFF of H,W,C samples; a tag of `more` is bytes, or unsigned 16-bit numbers."""
    order = ">" if big_endian else "<"
    height, width, bands = samples.shape
    planes = [samples[:, :, i : i + 1] for i in range(bands)] if planar else [samples]
    chunks = [_packed(part, bits, order) for plane in planes for part in _parts(plane, tile)]
    chunks = [zlib.compress(chunk) for chunk in chunks] if deflate else chunks
    tags: dict[int, tuple[str, tuple[int, ...] | bytes]] = {
        256: ("I", (width,)), 257: ("I", (height,)), 258: ("H", (bits,) * bands),
        259: ("H", (8 if deflate else 1,)), 262: ("H", (photometric,)), 277: ("H", (bands,)),
        284: ("H", (2 if planar else 1,)), 339: ("H", (sample_format,) * bands),
    }  # fmt: skip
    if extra:
        tags[338] = ("H", extra)
    if photometric == YCBCR:
        tags[530] = ("H", (1, 1))
    tags |= {number: ("B" if isinstance(value, bytes) else "H", value) for number, value in (more or {}).items()}
    offsets, counts = (324, 325) if tile else (273, 279)
    tags |= {322: ("I", (tile,)), 323: ("I", (tile,))} if tile else {278: ("I", (ROWS,))}
    tags |= {offsets: ("I", (0,) * len(chunks)), counts: ("I", tuple(map(len, chunks)))}
    start = 8 + 2 + 12 * len(tags) + 4
    values = {number: _encoded(kind, value, order) for number, (kind, value) in tags.items()}
    ends = start + sum(len(data) for data in values.values() if len(data) > 4)
    places = np.cumsum([ends, *map(len, chunks)])[:-1]
    values[offsets] = _encoded("I", tuple(int(place) for place in places), order)
    entries, behind = b"", b""
    for number in sorted(tags):
        kind, value = tags[number]
        code = {"B": 1, "H": 3, "I": 4}[kind]
        entries += struct.pack(order + "HHI", number, code, len(value))
        data = values[number]
        if len(data) <= 4:
            entries += data.ljust(4, b"\0")
        else:
            entries += struct.pack(order + "I", start + len(behind))
            behind += data
    head = (b"MM" if big_endian else b"II") + struct.pack(order + "HIH", 42, 8, len(tags))
    return head + entries + bytes(4) + behind + b"".join(chunks)


ROWS = 7
"""Rows of a strip: no divisor of the heights that tests use."""


def _parts(plane: np.ndarray, tile: int) -> list[np.ndarray]:
    height, width, bands = plane.shape
    if not tile:
        return [plane[top : top + ROWS] for top in range(0, height, ROWS)]
    parts = []
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            whole = np.zeros((tile, tile, bands), plane.dtype)
            part = plane[top : top + tile, left : left + tile]
            whole[: part.shape[0], : part.shape[1]] = part
            parts.append(whole)
    return parts


def _packed(part: np.ndarray, bits: int, order: str) -> bytes:
    if bits % 8 == 0:
        return part.astype(part.dtype.newbyteorder(order)).tobytes()
    rows = part.reshape(len(part), -1).astype(np.int64)
    spread = (rows[:, :, None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(spread.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def _encoded(kind: str, value: tuple[int, ...] | bytes, order: str) -> bytes:
    return value if isinstance(value, bytes) else struct.pack(f"{order}{len(value)}{kind}", *value)
