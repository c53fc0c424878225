"""By windows as in one pass: the same classes, for any size, in the memory of a window's rows."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from atrous.data.images.row_io import Strips, strips_of
from atrous.evaluation.evaluate import predict_classes
from atrous.models.aspp import ASPP
from atrous.ops.resize import pad_image
from atrous.prediction import sliding_window as module
from atrous.prediction.predictor import Predictor
from atrous.prediction.sliding_window import SlidingWindow, spans
from reliability import record

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "photos"


class Tiny(nn.Module):
    """A network that sees 4 pixels to each side, and one feature, and the whole picture's mean."""

    mean = std = (0.5, 0.5, 0.5)
    num_classes = 5
    output_stride = 8
    longest_side = None
    upsampling = "grid"

    def __init__(self, pooling: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.backbone.reachable = (8,)
        self.head = ASPP(8, (1,), image_pooling=pooling, filters=8, output_stride=8)
        self.classifier = nn.Conv2d(8, 5, 1)
        self.eval()
        with torch.no_grad():  # so that every class has its share
            seen = self.low_resolution_logits(
                torch.from_numpy(picture(300, 300) / 127.5 - 1).permute(2, 0, 1).float()[None]
            )
            assert self.classifier.bias is not None
            self.classifier.bias -= seen.mean((0, 2, 3))

    def low_resolution_logits(self, images: Tensor) -> Tensor:
        return self.classifier(self.head(self.backbone(pad_image(images, 8, self.upsampling))))


def picture(height: int, width: int, blob: int = 20) -> np.ndarray:
    """Soft shapes, dark on the left and light on the right: the mean of a window is not the picture's."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (max(1, height // blob), max(1, width // blob), 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
    return (image * np.linspace(0.3, 1, width)[None, :, None]).astype(np.uint8)


def whole(windows: SlidingWindow, image: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    return predict_classes(windows.model, pixels, scales=windows.scales, flip=windows.flip)[0].numpy()


def by_windows(windows: SlidingWindow, image: np.ndarray) -> np.ndarray:
    actual = np.concatenate(list(windows.classes(strips_of(image))))
    assert actual.shape == image.shape[:2] and actual.dtype == np.uint8
    return actual


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 5000),
    stride=st.sampled_from([4, 8, 16, 32]),
    window=st.integers(256, 2100),
    dense=st.booleans(),
)
def test_windows_cover_an_axis_and_their_weights_add_up_to_one(
    length: int, stride: int, window: int, dense: bool
) -> None:
    side, step = (window - 1) // stride * stride + 1, 4 if dense else stride
    overlap = min(2 * module.CONTEXT + module.BLEND, side // 2)
    actual = spans(length, side, overlap, stride, step)
    total = torch.zeros(-(-(length - 1) // step) + 1)
    for span in actual:
        assert span.start % stride == 0 and 0 <= span.start < span.stop <= length and span.stop - span.start <= side
        total[span.first : span.last] += span.weights
        # What counts lies in the window, and away from an edge that is not the picture's.
        least = (overlap - module.BLEND) // 2 - 2 * stride
        assert span.first * step >= span.start + (least if span.start else 0)
        assert (span.last - 1) * step <= span.stop - 1 - (least if span.stop < length else -step)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert all(a.start < b.start and a.first <= b.first for a, b in zip(actual, actual[1:], strict=False))


@pytest.mark.parametrize("pooling", [False, True])
@pytest.mark.parametrize("size", [(300, 700), (701, 299), (523, 1), (1, 1), (257, 257), (258, 514)])
def test_windows_give_what_one_pass_gives(pooling: bool, size: tuple[int, int]) -> None:
    windows, image = SlidingWindow(Tiny(pooling), window=129), picture(*size)
    expected = whole(windows, image)
    assert (by_windows(windows, image) == expected).mean() > 0.9995
    assert min(size) < 200 or len(np.unique(expected)) > 1


@pytest.mark.parametrize(("upsampling", "least"), [("half_pixel", 0.98), ("corners", 0.88)])
def test_features_of_other_conventions_keep_their_place(upsampling: str, least: float) -> None:
    # With aligned corners the shift of a feature depends on the size of what is upsampled, up to the stride less one.
    net = Tiny(True)
    net.upsampling = upsampling
    windows, image = SlidingWindow(net, window=200), picture(648, 712)
    assert (by_windows(windows, image) == whole(windows, image)).mean() > least


def test_the_mean_of_the_whole_picture_is_what_makes_them_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, image = SlidingWindow(Tiny(True), window=129), picture(300, 700)
    expected = whole(windows, image)
    monkeypatch.setattr(module, "_with_image_level", lambda model, means: model)
    assert (by_windows(windows, image) == expected).mean() < 0.98


@pytest.mark.parametrize("options", [{"flip": True}, {"scales": (0.5, 1.0, 1.5)}, {"scales": (1.5,), "flip": True}])
def test_scales_and_flips_are_averaged(options: dict) -> None:
    # A window's features, flipped or scaled, lie between those of the whole picture: about the same, if it is smooth.
    windows, image = SlidingWindow(Tiny(True), window=257, **options), picture(601, 498, blob=100)
    expected = whole(windows, image)
    assert (by_windows(windows, image) == expected).mean() > 0.98
    assert (whole(SlidingWindow(Tiny(True)), image) == expected).mean() < 0.99


@pytest.mark.parametrize("scales", [(1.0,), (1.5,)])
def test_any_size_comes_out_at_its_size(scales: tuple[float, ...]) -> None:
    windows = SlidingWindow(Tiny(True), window=65, scales=scales)
    for height, width in [(1, 66), (66, 1), (64, 65), (65, 66), (67, 131), (130, 129), (200, 73)]:
        by_windows(windows, picture(height, width))


def test_progress_grows_to_one() -> None:
    told: list[float] = []
    list(SlidingWindow(Tiny(True), window=129).classes(strips_of(picture(300, 300)), told.append))
    assert told == sorted(told) and told[-1] == 1 and len(told) > 9


def test_windows_too_small_for_the_network_are_refused() -> None:
    with pytest.raises(ValueError, match="window is 63, expected at least 64 at output stride 8"):
        SlidingWindow(Tiny(True), window=63)


def test_memory_is_that_of_a_window_of_rows_not_of_the_picture() -> None:
    height, width = 3_000, 600

    def picture(height: int) -> Strips:
        def strips(rows: int) -> Iterator[np.ndarray]:
            for top in range(0, height, rows):
                yield np.full((min(rows, height - top), width, 3), top % 256, dtype=np.uint8)

        return Strips((height, width), strips)

    windows = SlidingWindow(Tiny(True), window=129)
    for _ in windows.classes(picture(300)):  # what it imports is no part of it
        pass
    tracemalloc.start()
    try:
        done = sum(len(rows) for rows in windows.classes(picture(height)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done == height and peak < height * width * 3 / 5


def enlarged(name: str, width: int, height: int) -> np.ndarray:
    with Image.open(PHOTOGRAPHS / name) as image:
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [16, 8])
def test_the_shipped_weights_agree_with_one_pass(output_stride: int) -> None:
    if not PHOTOGRAPHS.exists():
        pytest.skip("no photographs in ../shared/photos")
    predictor = Predictor.load("camvid-efficientnet_lite0", device="cpu", output_stride=output_stride)
    row = [enlarged(name, 1500, 1000) for name in ("train.jpg", "terrace.jpg")]
    pictures = {
        "sportscar.jpg enlarged": enlarged("sportscar.jpg", 3000, 2000),
        "terrace.jpg enlarged": enlarged("terrace.jpg", 3000, 2000),
        "four photographs": np.vstack([np.hstack(row), np.hstack([row[1], enlarged("bike-riders.jpg", 1500, 1000)])]),
    }
    agreed = {}
    for name, image in pictures.items():
        predictor.window = None
        expected = predictor(image).mask
        predictor.window = module.WINDOW
        agreed[name] = float((predictor(image).mask == expected).mean())
    shown = ", ".join(f"{name} {share:.2%}" for name, share in agreed.items())
    record("large image", f"3,000×2,000 at output stride {output_stride}, same class as in one pass: {shown}")
    assert min(agreed.values()) >= 0.99


LARGE = """
    import sys
    from pathlib import Path
    from atrous import DeepLabV3, Predictor
    from atrous.data.labels import VOC
    from atrous.prediction.files import predict_files
    import torch
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DeepLabV3("timm/mobilenetv3_large_100", num_classes=21, output_stride=32)
    predictor = Predictor(model, VOC, device="cpu", max_pixels=500_000_000)
    batch = predict_files(predictor, [sys.argv[1]], Path(sys.argv[2]))
    assert not batch.failures, batch.failures
    # Not ru_maxrss: that is at least what the process had that started this one.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(int(peak.split()[1]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_twenty_thousand_squared_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    pyvips = pytest.importorskip("pyvips", reason="the extra 'large' is not installed")
    photograph = str(resources.files("atrous") / "prediction" / "assets" / "pavilion.jpg")
    tile = pyvips.Image.new_from_file(photograph).resize(4).copy_memory()
    image = tile.replicate(8, 12).crop(0, 0, 20_000, 20_000)
    image.tiffsave(str(tmp_path / "city.tif"), tile=True, tile_width=512, tile_height=512, compression="jpeg", Q=85)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LARGE), str(tmp_path / "city.tif"), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = float(done.stdout.split()[-1])
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record("large image", f"20,000×20,000 (tiled TIFF, MobileNetV3 at 32): {peak:,.0f} MB at most, {seconds:.0f} s CPU")
    with Image.open(tmp_path / "out" / "masks" / "city.png") as mask:
        assert mask.size == (20_000, 20_000) and mask.mode == "P"
    with Image.open(tmp_path / "out" / "overlays" / "city.png") as overlay:
        assert overlay.size == (4000, 4000)
    assert peak < 1500
