"""DICOM files that pydicom wrote, against pydicom's own windowing and rescaling."""

import io
from pathlib import Path

import numpy as np
import pytest

from atrous.data.images.image_io import read_image, read_size
from atrous.data.images.row_io import is_installed, open_strips
from atrous.data.images.samples import ImageRule

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import apply_windowing  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian  # noqa: E402

Array = np.ndarray


def dicom(values: Array, bits: int = 12, **elements: object) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("a.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, "1.2.3"
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = 1 if values.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if values.ndim == 2 else "RGB"
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * values.dtype.itemsize, bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def unsigned() -> Array:
    return np.linspace(0, 4095, 20 * 30).astype(np.uint16).reshape(20, 30)


def gray(content: bytes, tmp_path: Path, rule: ImageRule = ImageRule()) -> Array:  # noqa: B008
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    picture = read_image(path, rule=rule)
    assert read_size(path) == picture.shape[:2] and np.array_equal(picture[:, :, 0], picture[:, :, 2])
    if is_installed():
        assert np.array_equal(np.concatenate(list(open_strips(path, rule=rule).strips(7))), picture)
    return picture[:, :, 0].astype(int)


def test_bits_that_are_stored_are_the_range_without_a_window(tmp_path: Path) -> None:
    assert np.abs(gray(dicom(unsigned()), tmp_path) - unsigned() / 4095 * 255).max() <= 0.5
    signed = unsigned().astype(np.int16) - 2048
    assert np.abs(gray(dicom(signed), tmp_path) - unsigned() / 4095 * 255).max() <= 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("slope", [1, 0.5])
def test_windows_are_pydicoms(tmp_path: Path, function: str, slope: float) -> None:
    more = {"WindowCenter": [40, 500], "WindowWidth": [400, 1500], "VOILUTFunction": function,
            "RescaleSlope": slope, "RescaleIntercept": -1024}  # fmt: skip
    content = dicom(unsigned(), **more)
    data = pydicom.dcmread(io.BytesIO(content))
    windowed = apply_windowing(unsigned().astype(float) * slope - 1024, data)
    low, high = -1024, 4095 * slope - 1024
    assert np.abs(gray(content, tmp_path) - (windowed - low) / (high - low) * 255).max() <= 0.51


def test_a_value_range_is_in_rescaled_units(tmp_path: Path) -> None:
    content = dicom(unsigned(), RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=80)
    expected = ((unsigned() - 1024.0 + 160) * 255 / 400).clip(0, 255)
    assert np.abs(gray(content, tmp_path, ImageRule((-160, 240))) - expected).max() <= 0.51


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = gray(dicom(unsigned()), tmp_path)
    assert np.array_equal(gray(dicom(unsigned(), PhotometricInterpretation="MONOCHROME1"), tmp_path), 255 - plain)


def test_colours(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    (tmp_path / "a.dcm").write_bytes(dicom(rgb, 8))
    assert np.array_equal(read_image(tmp_path / "a.dcm"), rgb)
    assert np.array_equal(read_image(tmp_path / "a.dcm", rule=ImageRule(bands=(3, 2, 1))), rgb[:, :, ::-1])


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = dicom(np.concatenate([unsigned()] * 2), NumberOfFrames=2, Rows=20)
    whole = dicom(unsigned())
    cases = {
        "2 frames in one file; expected one": frames,
        "without an image; expected": whole.replace(b"\x28\0\x10\0US", b"\x29\0\x10\0US"),
        "bands; expected at least|1 band; expected at least 4": whole,
    }
    for message, content in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            read_image(content, rule=ImageRule(bands=(4, 3, 2)))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="30x20 pixels; expected at most 100"):
        read_image(whole, max_pixels=100)
    accepted = []
    for cut in np.linspace(140, len(whole) - 1, 64).astype(int):
        try:
            read_image(whole[:cut])
            accepted.append(cut)
        except ValueError as error:
            assert "\n" not in str(error) and "expected" in str(error)  # noqa: PT017
    assert not accepted
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"bytes: DICOM needs pydicom: pip install 'atrous\[dicom\]'"):
        read_image(whole)
