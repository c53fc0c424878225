"""Colours that classes are drawn in: none nearly black, none too near to another, for the colour-blind neither.

A data set's own colours are kept, but for those that fail this. Distances are Euclidean in CIELAB: about 2 is the least
difference that a person sees side by side. Dichromats' colours are those of Machado, Oliveira and Fernandes (2009), "A
physiologically-based model for simulation of color vision deficiency", severity 1.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import numpy.typing as npt

from atrous.data.labels import VOC, Colour, Labels, voc_palette

LEAST_DISTANCE = 5.0
"""Of a data set's own colours, in CIELAB."""
LEAST_LIGHTNESS = 8.0
"""L* of a class other than background, 0 to 100."""

_VISIONS = np.array(
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)
"""Linear RGB as seen with all cones, without those for red (protanopia), without those for green (deuteranopia)."""
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])
_BACKGROUND = ("background", "_background_")
_BORDER: Colour = (255, 255, 255)
"""That of segments in overlays: no class has it."""

Lab = npt.NDArray[np.float64]


def is_background(name: str) -> bool:
    """Whether a class is what no object covers, by its name."""
    return name.lower() in _BACKGROUND


def as_seen(colours: npt.ArrayLike) -> Lab:
    """CIELAB of colours, N,3 in 0..255, for each kind of vision, float 3,N,3."""
    parts = np.asarray(colours, dtype=np.float64).reshape(-1, 3) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ _VISIONS.transpose(0, 2, 1), 0, 1) @ _XYZ.T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    lab: Lab = np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
    return lab


def distance(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Distance of each of N colours to each of M, the least over all kinds of vision, float N,M."""
    least: npt.NDArray[np.float64] = _distances(first, second).min(axis=0)
    return least


def _distances(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """For each kind of vision, float 3,N,M."""
    differences = as_seen(first)[:, :, None] - as_seen(second)[:, None]
    distances: npt.NDArray[np.float64] = np.sqrt((differences**2).sum(-1))
    return distances


def has_own_colours(labels: Labels) -> bool:
    """Whether somebody chose the colours: VOC's, the default, say nothing where classes have other names than VOC's."""
    return labels.palette != voc_palette(len(labels)) or labels.names == VOC.names


def drawn_palette(labels: Labels) -> tuple[Colour, ...]:
    """The colours to draw classes in: the labels' own where they can be told apart, else others."""
    background = tuple(is_background(name) for name in labels.names)
    return _told_apart(labels.palette if has_own_colours(labels) else (None,) * len(labels), background)


@functools.lru_cache(maxsize=64)
def _told_apart(palette: tuple[Colour | None, ...], background: tuple[bool, ...]) -> tuple[Colour, ...]:
    kept: dict[int, Colour] = {}
    for index, colour in enumerate(palette):
        colour = (0, 0, 0) if colour is None and background[index] else colour
        if colour is None or (not background[index] and as_seen([colour])[0, 0, 0] < LEAST_LIGHTNESS):
            continue
        if not kept or distance([colour], [*kept.values()]).min() >= LEAST_DISTANCE:
            kept[index] = colour
    colours = [*kept.values()]
    free = iter(_farthest((*colours, _BORDER, (0, 0, 0)), len(palette) - len(kept)))
    return tuple(kept[index] if index in kept else next(free) for index in range(len(palette)))


def _farthest(taken: tuple[Colour, ...], count: int) -> list[Colour]:
    """Colours, each as far as it can be from those before it and from the taken ones."""
    levels = (0, 32, 64, 96, 128, 160, 192, 224, 255)
    candidates = np.array([*itertools.product(levels, repeat=3)])
    lightness = as_seen(candidates)[0, :, 0]
    candidates = candidates[(lightness > 32) & (lightness < 90)]

    def apart(colours: npt.ArrayLike) -> npt.NDArray[np.float64]:
        # Most people have all cones: for them colours are to be twice as far apart.
        distances = _distances(candidates, colours)
        distances[0] /= 2
        least: npt.NDArray[np.float64] = distances.min(axis=(0, 2))
        return least

    nearest = apart(taken)
    chosen: list[Colour] = []
    for _ in range(count):
        red, green, blue = candidates[int(nearest.argmax())].tolist()
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, apart([chosen[-1]]))
    return chosen
