"""Read DICOM images (``pip install 'atrous[dicom]'``): rescaled, windowed, upright gray or RGB.

A value range is in the units after rescaling, such as Hounsfield units. Without one the file's first window counts, or
else its VOI LUT, or else all bits that are stored. MONOCHROME1 is inverted, so that it looks as on a viewer.
"""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import numpy.typing as npt

from atrous.data.images.image_file import check_size
from atrous.data.images.samples import ImageRule, check_bands, sample_values_to_rgb, scaled


def is_dicom(file: IO[bytes]) -> bool:
    """Whether a file has the preamble of DICOM."""
    file.seek(0)
    return file.read(132)[128:] == b"DICM"


def dicom_size(file: IO[bytes], max_pixels: int) -> tuple[int, int]:
    """Height and width, from the header alone; errors as `read_dicom`."""
    return _size(_dataset(file, header=True), max_pixels)


def read_dicom(file: IO[bytes], max_pixels: int, rule: ImageRule) -> npt.NDArray[np.uint8]:
    """The image, uint8 H,W,3.

    Raises:
        ValueError: without pydicom, for a file of several frames or without an image, or one that is truncated or
            compressed in a way for which a decoder is missing.
    """
    dataset = _dataset(file)
    _size(dataset, max_pixels)
    try:
        values = np.asarray(dataset.pixel_array)
    except (RuntimeError, NotImplementedError) as error:  # a decoder is missing
        syntax = getattr(dataset.file_meta.TransferSyntaxUID, "name", "unknown")
        raise ValueError(
            f"pixels compressed by {syntax}, which pydicom cannot decode here; expected one that it can: pip install "
            "pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from error
    if values.ndim == 3:
        check_bands(rule.bands, values.shape[2])
        bands = rule.bands or (1, 2, 3)
        top = (1 << int(dataset.BitsStored)) - 1
        return sample_values_to_rgb(values[:, :, [band - 1 for band in bands]], rule, (top,) * len(bands))
    check_bands(rule.bands, 1)
    gray = _gray(values, dataset, rule)
    gray = 255 - gray if dataset.PhotometricInterpretation == "MONOCHROME1" else gray
    return np.ascontiguousarray(np.broadcast_to(gray[:, :, None], (*gray.shape, 3)))


def _dataset(file: IO[bytes], header: bool = False) -> Any:
    try:
        import pydicom
    except ImportError:
        raise ValueError("DICOM needs pydicom: pip install 'atrous[dicom]'; expected that, or another format") from None
    file.seek(0)
    return pydicom.dcmread(file, stop_before_pixels=header)


def _size(dataset: Any, max_pixels: int) -> tuple[int, int]:
    if "Rows" not in dataset or "Columns" not in dataset:
        kind = getattr(dataset.get("SOPClassUID"), "name", "DICOM")
        raise ValueError(f"a {kind} without an image; expected one with rows and columns")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"{frames} frames in one file; expected one: save each frame as a file of its own")
    height, width = int(dataset.Rows), int(dataset.Columns)
    check_size(width, height, max_pixels)
    return height, width


def _gray(values: npt.NDArray[Any], dataset: Any, rule: ImageRule) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    stored = int(dataset.BitsStored)
    rescaled = np.asarray(apply_modality_lut(values, dataset))
    if rule.value_range:
        return scaled(rescaled, rule)
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        return _windowed(rescaled.astype(np.float64), dataset)
    if "VOILUTSequence" in dataset:
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return scaled(apply_voi(rescaled, dataset), ImageRule((0, (1 << bits) - 1)))
    low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if dataset.PixelRepresentation else (0, (1 << stored) - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return scaled(rescaled, ImageRule((ends[0], ends[1])))


def _windowed(values: npt.NDArray[np.float64], dataset: Any) -> npt.NDArray[np.uint8]:
    """By the first window, as section C.11.2.1.2 of PS3.3 says."""
    center, width = (float(np.atleast_1d(dataset[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID" and width > 0:
        return np.rint(255 / (1 + np.exp(-4 * (values - center) / width))).astype(np.uint8)
    low, high = center - width / 2, center + width / 2
    if function == "LINEAR":
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    if not low < high:
        return np.where(values > low, 255, 0).astype(np.uint8)
    return scaled(values, ImageRule((low, high)))
