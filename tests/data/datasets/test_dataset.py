"""The plain layout made small, every way in which it can be incomplete, and what all layouts share."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from atrous.data.checks.validate import check
from atrous.data.datasets.base import is_clutter
from atrous.data.datasets.dataset import Item, SegmentationDataset, kind_of, list_split, open_dataset, splits
from atrous.data.labels import CAMVID, Labels
from atrous.data.sampling import pixel_counts
from atrous.training.config import Recipe
from atrous.training.loop import train
from reliability import record

SHARED = Path(__file__).parents[4] / "shared" / "data"
TWO = Labels(("sky", "road"), ((0, 0, 0), (255, 0, 0)))


def put_image(path: Path, size: tuple[int, int] = (6, 4), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def put_mask(path: Path, size: tuple[int, int] = (6, 4), value: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask[0, :2] = (value, 255)
    Image.fromarray(mask).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "plain"
    root.mkdir()
    (root / "dataset.yaml").write_text("names: [sky, road]\n")
    for split, names in {"train": "bca", "val": "d"}.items():
        for seed, name in enumerate(names):
            put_image(root / "images" / split / f"{name}.{'png' if name == 'a' else 'jpg'}", seed=seed)
            put_mask(root / "masks" / split / f"{name}.png")
    (root / "images" / "train" / ".DS_Store").write_bytes(b"x")
    return root


def test_plain_folder(folder: Path) -> None:
    dataset = open_dataset(folder, "train")
    assert dataset.names == ["a", "b", "c"] and len(dataset) == 3 and dataset.labels.names == ("sky", "road")
    name, image, mask = dataset[0]
    assert name == "a" and image.shape == (3, 4, 6) and image.dtype == torch.uint8
    assert mask.shape == (4, 6) and mask.dtype == torch.uint8 and mask[0].tolist() == [1, 255, 0, 0, 0, 0]
    assert splits(folder) == ["train", "val"]
    for data in (folder, str(folder), f"folder:{folder}"):
        assert open_dataset(data, "val").names == ["d"] and kind_of(data) == "folder"


def test_samples_come_through_workers_and_pickles(folder: Path) -> None:
    dataset = open_dataset(folder, "train")
    assert pickle.loads(pickle.dumps(dataset))[1].name == "b"
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    assert [sample.name for sample in loader] == ["a", "b", "c"]


def test_cache_decodes_once(folder: Path) -> None:
    cached = open_dataset(folder, "val", cache=True)
    first = cached[0]
    (folder / "images" / "val" / "d.jpg").unlink()
    assert cached[0] is first
    with pytest.raises(FileNotFoundError, match=r"d\.jpg: no such file"):
        open_dataset_items(cached)[0]


def open_dataset_items(dataset: SegmentationDataset) -> SegmentationDataset:
    return SegmentationDataset(dataset.items, dataset.labels)


def test_missing_masks_are_listed(folder: Path) -> None:
    for name in "efghi":
        put_image(folder / "images" / "train" / f"{name}.jpg")
    with pytest.raises(
        ValueError, match=r"images/train: 5 of 8 images have no mask in masks/train.*e, f, g and 2 more$"
    ):
        open_dataset(folder, "train")
    listing = list_split(folder, "train")
    assert len(listing.items) == 3 and len(listing.problems) == 1


def test_a_mask_without_its_image_is_a_warning(folder: Path) -> None:
    put_mask(folder / "masks" / "val" / "lost.png")
    assert len(open_dataset(folder, "val")) == 1
    assert "1 masks have no image: lost" in list_split(folder, "val").warnings[0]


def test_same_stems_are_refused(folder: Path) -> None:
    put_image(folder / "images" / "val" / "d.png")
    with pytest.raises(ValueError, match=r"d\.jpg and d\.png have the same stem"):
        open_dataset(folder, "val")


def test_a_jpeg_mask_is_refused_with_its_reason(folder: Path) -> None:
    (folder / "masks" / "val" / "d.png").unlink()
    put_image(folder / "masks" / "val" / "d.jpg")
    with pytest.raises(ValueError, match=r"d\.jpg: a mask in JPEG"):
        open_dataset(folder, "val")[0]


def test_sizes_that_differ_are_refused(folder: Path) -> None:
    put_mask(folder / "masks" / "val" / "d.png", size=(4, 6))
    with pytest.raises(ValueError, match=r"masks/val/d\.png: mask of 4x6; expected 6x4, the size of .*d\.jpg"):
        open_dataset(folder, "val")[0]


@pytest.mark.parametrize("value", [2, 3, 4, 7, 16, 21, 64, 100, 127, 128, 200, 254])
def test_ids_out_of_range_are_refused(folder: Path, value: int) -> None:
    put_mask(folder / "masks" / "val" / "d.png", value=value)
    message = rf"d\.png: mask has id {value} \(1 pixels\); expected 0..1 or 255, ignored"
    with pytest.raises(ValueError, match=message):
        open_dataset(folder, "val")[0]


def test_colour_maps_are_read_by_the_palette(tmp_path: Path) -> None:
    put_image(tmp_path / "a.jpg", size=(2, 1))
    Image.fromarray(np.array([[[255, 0, 0], [224, 224, 192]]], dtype=np.uint8)).save(tmp_path / "m.png")
    dataset = SegmentationDataset([Item("a", tmp_path / "a.jpg", tmp_path / "m.png")], TWO)
    assert dataset[0].mask.tolist() == [[1, 255]]


def test_a_palette_in_another_order_is_refused_before_training(folder: Path) -> None:
    (folder / "dataset.yaml").write_text("names: [sky, road]\npalette: [[9, 9, 200], [90, 90, 90]]\n")
    image = Image.fromarray(np.array([[0, 1, 1, 255, 0, 0]] * 4, np.uint8))
    image.putpalette([9, 9, 200, 90, 90, 90] + [0] * 762)
    image.save(folder / "masks" / "val" / "d.png")
    assert pixel_counts(open_dataset(folder, "val")).tolist() == [[12, 8]]
    image.putpalette([90, 90, 90, 9, 9, 200] + [0] * 762)
    image.save(folder / "masks" / "val" / "d.png")
    message = r"d\.png: id 0, sky, is drawn in \(90, 90, 90\), the colour of road; expected names, palette and masks in"
    with pytest.raises(ValueError, match=message):
        pixel_counts(open_dataset(folder, "val"))
    assert any("id 0, sky, is drawn in" in line for line in check(folder).problems)
    image.putpalette([0, 0, 0] + [255] * 765)
    image.save(folder / "masks" / "val" / "d.png")
    assert pixel_counts(open_dataset(folder, "val")).tolist() == [[12, 8]], "colours that say nothing"


def test_no_mask_is_all_ignored(tmp_path: Path) -> None:
    put_image(tmp_path / "a.jpg")
    sample = SegmentationDataset([Item("a", tmp_path / "a.jpg", None)], TWO)[0]
    assert (sample.mask == 255).all() and sample.mask.shape == (4, 6)


class Stripes:
    """A mask that is no file."""

    def __str__(self) -> str:
        return "stripes"

    def read(self) -> np.ndarray:
        return np.tile(np.array([7, 8, 9, 255], np.uint8), (2, 1))


def test_a_mask_can_come_from_anything_that_reads(tmp_path: Path) -> None:
    put_image(tmp_path / "a.jpg", size=(4, 2))
    item = Item("a", tmp_path / "a.jpg", Stripes())
    remap = [-1] * 256
    remap[7], remap[8], remap[9], remap[255] = 1, 255, 0, 255
    assert SegmentationDataset([item], TWO, remap=remap)[0].mask[0].tolist() == [1, 255, 0, 255]
    remap[9], remap[10], remap[12] = -1, 0, 255
    with pytest.raises(ValueError, match=r"^stripes: mask has id 9 \(2 pixels\); expected 7..8 or 10 or 12 or 255$"):
        SegmentationDataset([item], TWO, remap=remap)[0]
    with pytest.raises(
        ValueError, match="^stripes: mask has id 7 .2 pixels., 8 .2 pixels., 9 .2 pixels.; expected 0..1"
    ):
        SegmentationDataset([item], TWO)[0]


def test_remap_is_checked() -> None:
    for remap in ([0, 1], [256] * 256, [-2] * 256):
        with pytest.raises(ValueError, match="expected 256 ids"):
            SegmentationDataset([], TWO, remap=remap)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("{root}/nowhere", FileNotFoundError, "nowhere: no such folder"),
        (
            "voc:{root}/nowhere",
            FileNotFoundError,
            "no such folder; .*VOC 2012 is published at http://host.robots.ox.ac.uk",
        ),
        ("coco:{root}/nowhere", FileNotFoundError, "no such folder; .*COCO is published at https://cocodataset.org/"),
        ("{root}/CamVid", FileNotFoundError, "no such folder; .*CamVid is published at http://mi.eng.cam.ac.uk/"),
        ("cityscapes:{root}", ValueError, "expected leftImg8bit/.*; .*plain has the layout of folder$"),
        ("{root}/plain/masks/val/d.png", ValueError, "a file; expected the folder of a data set, its archive"),
        ("{root}/plain/dataset.yaml", ValueError, "plain: no split 'dev'; the splits there are train, val"),
        ("{root}", ValueError, "plain: no split 'dev'; the splits there are train, val"),
        (
            "{root}/plain/images/val",
            ValueError,
            "not recognised; photographs, but no masks; expected a mask beside each, .*docs/data.md.*$",
        ),
        (
            "nope:{root}",
            ValueError,
            "unknown kind of data set 'nope'; expected yolo, folder, voc, cityscapes, .*pairs, .*or a path",
        ),
        ("vco:ph", ValueError, r"vco:ph: unknown kind of data set 'vco'; did you mean voc\?$"),
        ("folders:{root}", ValueError, r"unknown kind of data set 'folders'; did you mean folder\?$"),
        ("cityscapes:{root}/plain/images/val", ValueError, "published at https://www.cityscapes-dataset.com/"),
        ("voc:{root}/plain/images/val", ValueError, "expected ImageSets.*semantic_contours"),
        ("voc:{root}/plain", ValueError, "not the layout of voc; expected ImageSets.*/plain has the layout of folder$"),
        ("coco:{root}", ValueError, "not the layout of coco; expected annotations/instances_train2017.json"),
        ("{root}/plain", ValueError, "no split 'dev'; the splits there are train, val"),
    ],
)
def test_what_is_not_there(folder: Path, data: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_dataset(data.format(root=folder.parent), "dev")
    assert "\n" not in str(caught.value)


def test_stored_ids_are_mapped(folder: Path) -> None:
    put_mask(folder / "masks" / "val" / "d.png", value=128)
    (folder / "dataset.yaml").write_text("names: [sky, road]\nmap: {128: 1, 255: sky}\n")
    assert open_dataset(folder, "val")[0].mask[0].tolist() == [1, 0, 0, 0, 0, 0]
    put_mask(folder / "masks" / "val" / "d.png", value=7)
    with pytest.raises(ValueError, match=r"d\.png: mask has id 7 \(1 pixels\); expected 0\.\.1 or 128 or 255$"):
        open_dataset(folder, "val")[0]


@pytest.mark.parametrize(
    "name", ["._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir", ".ipynb_checkpoints", "__MACOSX"]
)
def test_what_tools_leave_in_folders_is_no_data(folder: Path, name: str) -> None:
    for place in (folder, folder / "images", folder / "images" / "train", folder / "masks" / "train"):
        if name.rpartition(".")[2] in ("jpg", "DS_Store", "db", "ini"):
            (place / name).write_bytes(b"x")
        else:
            put_image(place / name / "a.jpg")
    assert is_clutter(name) and splits(folder) == ["train", "val"]
    assert open_dataset(folder, "train").names == ["a", "b", "c"]
    put_image(folder / "images" / "val" / "d.jpg", seed=9)
    report = check(folder)
    assert report.problems == report.warnings == []


def test_empty_split_and_bad_labels(folder: Path) -> None:
    (folder / "images" / "test").mkdir()
    with pytest.raises(ValueError, match="images/test: no images; expected dataset.yaml, images/SPLIT/"):
        open_dataset(folder, "test")
    (folder / "dataset.yaml").write_text("name: [sky]")
    with pytest.raises(ValueError, match=r"dataset\.yaml: unknown key 'name'; did you mean names"):
        open_dataset(folder, "train")


def test_shared_camvid() -> None:
    if not (SHARED / "camvid").is_dir():
        pytest.skip("no camvid beside the repository, in shared/data")
    dataset = open_dataset(SHARED / "camvid", "train")
    assert len(dataset) == 367 and dataset.labels == CAMVID
    assert dataset[0].image.shape == (3, 360, 480) and dataset[0].mask.shape == (360, 480)


@pytest.mark.slow
def test_twelve_bad_ids_are_named_before_the_first_step(folder: Path, tmp_path: Path, tiny: Recipe) -> None:
    values = (2, 3, 4, 7, 20, 21, 100, 127, 128, 200, 253, 254)
    for value in values:
        put_mask(folder / "masks" / "train" / "b.png", value=value)
        with pytest.raises(ValueError, match=rf"b\.png: mask has id {value} \(1 pixels\); expected 0\.\.1 or 255"):
            train(tiny, folder, tmp_path / f"run{value}", workers=0, device="cpu")
        assert not (tmp_path / f"run{value}").exists()
    record(
        "mask ids out of range", f"{len(values)} of {len(values)}: file, value and count, before a run's folder is made"
    )


@pytest.mark.slow
def test_sizes_that_differ_are_named_before_the_first_step(folder: Path, tmp_path: Path, tiny: Recipe) -> None:
    sizes = [(5, 4), (6, 5), (4, 6), (7, 4), (1, 1), (60, 40)]
    for width, height in sizes:
        put_mask(folder / "masks" / "train" / "b.png", size=(max(width, 2), height))
        said = rf"b\.png: mask of {max(width, 2)}x{height}; expected 6x4, the size of .*b\.jpg"
        with pytest.raises(ValueError, match=said):
            train(tiny, folder, tmp_path / "run", workers=0, device="cpu")
        assert not (tmp_path / "run").exists()
    record("picture and mask that differ in size", f"{len(sizes)} of {len(sizes)}: both files, both sizes")


def test_an_empty_folder_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout not recognised; there is no file in it"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("names", [["notes.txt"], ["a.jpg", "a.geojson"], ["a.jpg", "a.txt"]])
def test_what_no_layout_explains_is_answered_by_the_most_usual_ones(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        ValueError, match="layout not recognised; expected images/ and masks/, X.jpg with X_mask.png, or the export"
    ) as caught:
        open_dataset(tmp_path, "train")
    assert "docs/data.md" in str(caught.value) and len(str(caught.value)) < 250 + len(str(tmp_path))


def test_notes_beside_photographs_are_no_masks(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    put_image(tmp_path / "day" / "a.jpg", size=(2, 2))
    (tmp_path / "notes.txt").write_text("rain")
    with pytest.raises(ValueError, match="layout not recognised; photographs, but no masks"):
        open_dataset(tmp_path, "train")


def test_masks_alone_are_no_photographs(tmp_path: Path) -> None:
    put_mask(tmp_path / "a.png", value=1)
    with pytest.raises(ValueError, match="layout not recognised; expected images/ and masks/"):
        open_dataset(tmp_path, "train")
