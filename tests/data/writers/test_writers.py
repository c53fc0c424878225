"""What is written for a tool comes back: masks to the pixel, polygons nearly; by the tools' own libraries, too."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from atrous.data.convert import WRITERS, convert
from atrous.data.datasets.dataset import open_dataset, splits
from atrous.data.labels import Labels, voc_palette
from atrous.data.source import source_of
from atrous.data.writers.base import AREA, INDEX, Shapes, outlines

NAMES = ["background", "leaf", "stem, thin: 2", "ünder ground"]
EXACT, EVERY_CORNER, NEARLY = Shapes(), Shapes(polygons=True, tolerance=0), Shapes(polygons=True)
HELPER = Path(__file__).parents[2] / "helpers" / "read_with_tools.py"


def blobs(seed: int, height: int, width: int, ignore: bool) -> np.ndarray:
    """Overlapping ellipses and rings, with holes, islands, one-pixel lines and regions at the border."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    for value in (1, 2, 3, 1, 0, 2, 3, 1):
        y, x, b, a = (
            rng.uniform(0, height),
            rng.uniform(0, width),
            rng.uniform(5, height / 3),
            rng.uniform(5, width / 3),
        )
        distance = ((rows - y) / b) ** 2 + ((columns - x) / a) ** 2
        mask[(distance < 1) & (distance > rng.choice([0, 0.3]))] = value
    mask[height // 3, 5:-5], mask[5:-5, width // 4] = 2, 3
    if ignore:
        mask[-6:, : width // 2] = 255
        mask[10:14, 10:14] = 255
    return mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain data with holes, islands and names that need care."""
    root = tmp_path_factory.mktemp("plain")
    lines = "\n".join(f'- "{name}"' for name in NAMES)
    (root / "dataset.yaml").write_text(f"names:\n{lines}\n", encoding="utf-8")
    for split, count in {"train": 3, "val": 2}.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = blobs(index + 10 * (split == "val"), 90, 130 + index, ignore=index == 1)
            pixels = np.random.default_rng(index).integers(0, 256, (*mask.shape, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / f"{split} {index}.jpg")
            Image.fromarray(mask).save(root / "masks" / split / f"{split} {index}.png")
    return root


def by_name(data: Path) -> dict[str, np.ndarray]:
    """Masks by name of the image, with the ids of `NAMES`."""
    read = {}
    for split in splits(data):
        dataset = open_dataset(data, split)
        ids = np.full(256, 255, np.uint8)
        ids[: len(dataset.labels)] = [NAMES.index(name) for name in dataset.labels.names]
        read |= {Path(sample.name).name: ids[sample.mask.numpy()] for sample in dataset}
    return read


def worst_iou(truth: dict[str, np.ndarray], read: dict[str, np.ndarray], *, ignored: bool) -> float:
    """The lowest IoU of a class in an image; where the format has no ignored pixels, they do not count."""
    assert read.keys() == truth.keys()
    worst = 1.0
    for name, mask in truth.items():
        counts = np.ones(mask.shape, bool) if ignored else mask != 255
        for value in np.unique(mask[counts]):
            ours, theirs = (mask == value) & counts, (read[name] == value) & counts
            worst = min(worst, float((ours & theirs).sum() / (ours | theirs).sum()))
    return worst


@pytest.mark.parametrize(
    ("to", "shapes", "least"),
    [
        ("voc", EXACT, 1.0),
        ("coco", EXACT, 1.0),
        ("cvat", EXACT, 1.0),
        ("coco", EVERY_CORNER, 0.99),
        ("cvat", EVERY_CORNER, 0.98),
        ("yolo", EVERY_CORNER, 0.99),
        ("labelme", EVERY_CORNER, 0.98),
        ("labelme", NEARLY, 0.75),
        ("yolo", NEARLY, 0.75),
    ],
)
def test_our_readers_read_what_is_written(to: str, shapes: Shapes, least: float, data: Path, tmp_path: Path) -> None:
    result = convert(source_of(data), tmp_path, to=to, shapes=shapes)
    assert not result.failures and result.splits == {"train": 3, "val": 2}
    assert worst_iou(by_name(data), by_name(tmp_path), ignored=WRITERS[to].ignores) >= least
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    convert(source_of(data), tmp_path, to=to, shapes=shapes)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_what_a_format_cannot_say_is_told(data: Path, tmp_path: Path) -> None:
    said = " ".join(convert(source_of(data), tmp_path / "y", to="yolo", shapes=Shapes(tolerance=2)).said)
    assert "of the pixels are ignored, for which this format has no word" in said and "up to 2 px" in said
    with pytest.raises(ValueError, match="voc has masks and no polygons"):
        convert(source_of(data), tmp_path / "v", to="voc", shapes=NEARLY)
    with pytest.raises(ValueError, match="tolerance is -1; expected 0 or more"):
        convert(source_of(data), tmp_path / "v", to="yolo", shapes=Shapes(tolerance=-1))


@pytest.mark.parametrize("names", [["sky", "road"], ["background", "road"]])
def test_classes_with_and_without_background(names: list[str], tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "train").mkdir(parents=True)
    (tmp_path / "data" / "dataset.yaml").write_text(
        f"names: {names}\npalette: [[0, 0, 0], [0, 0, 0]]\n".replace("'", "")
    )
    mask = np.repeat(np.array([[0, 1]], np.uint8), 8, axis=0).repeat(6, axis=1)
    Image.fromarray(mask).save(tmp_path / "data" / "masks" / "train" / "a.png")
    Image.new("RGB", (12, 8)).save(tmp_path / "data" / "images" / "train" / "a.png")
    for to in WRITERS:
        convert(source_of(tmp_path / "data"), tmp_path / to, to=to)
        (split,) = splits(tmp_path / to)
        dataset = open_dataset(tmp_path / to, split)
        there = np.array(dataset.labels.names)[dataset[0].mask.numpy()]
        assert (there == np.array(names)[mask]).all(), to


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 255])))
def test_outlines_of_any_mask_are_drawn_as_it_is(mask: np.ndarray) -> None:
    """Along edges by even-odd filling of centres; in layers by Pillow, where regions do not touch at corners alone."""
    labels = Labels(("background", "a", "b"), voc_palette(3))
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    drawn = np.zeros_like(mask)
    for value, points, _ in outlines(mask, labels, 0.0, (0.0, 1.0), layered=True):
        inside = np.zeros(mask.shape, bool)
        for (x, y), (u, v) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if y != v:
                inside ^= ((y > rows) != (v > rows)) & (columns < x + (rows - y) * (u - x) / (v - y))
        drawn[inside] = value
    assert (drawn == mask).all()
    for ends in (AREA, INDEX):
        assert all(len(points) >= 3 for _, points, _ in outlines(mask, labels, 1.0, ends, layered=False))


TOOLS = [
    ("datumaro:coco_instances", "coco", EXACT, 1.0),
    ("datumaro:coco_instances", "coco", EVERY_CORNER, 0.97),
    ("datumaro:cvat", "cvat", EXACT, 1.0),
    ("datumaro:cvat", "cvat", EVERY_CORNER, 0.97),
    ("datumaro:voc_segmentation", "voc", EXACT, 1.0),
    ("supervision:coco", "coco", EXACT, 1.0),
    ("supervision:yolo", "yolo", EVERY_CORNER, 0.97),
]


@pytest.mark.integration
@pytest.mark.parametrize(("tool", "to", "shapes", "least"), TOOLS)
def test_the_tools_own_libraries_read_it(
    tool: str, to: str, shapes: Shapes, least: float, data: Path, tmp_path: Path
) -> None:
    python = os.environ.get("ATROUS_TOOLS_PYTHON")
    if not python:
        pytest.skip("ATROUS_TOOLS_PYTHON names no Python that has datumaro and supervision")
    sound = tmp_path / "sound"  # libraries of tools have no ignored pixels
    convert(source_of(data), sound, copy=True)
    for path in (sound / "masks").rglob("*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 255, 0, mask).astype(np.uint8)).save(path)
    (sound / "dataset.yaml").write_text("names: [background, a, b, c]\n")
    convert(source_of(sound), tmp_path / "out", to=to, shapes=shapes)
    command = [python, str(HELPER), tool, str(tmp_path / "out"), str(tmp_path / "read"), "background,a,b,c"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, check=True, capture_output=True, env=clean)
    read = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "read").iterdir()}
    truth = {path.stem: np.asarray(Image.open(path)) for path in (sound / "masks").rglob("*.png")}
    assert worst_iou(truth, read, ignored=True) >= least
