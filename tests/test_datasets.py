"""The layouts as they are distributed, made small, and every way in which they can be incomplete."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from atrous.data.datasets import (
    Item,
    SegmentationDataset,
    list_split,
    open_dataset,
    read_cityscapes,
    read_folder,
    read_voc,
    splits,
)
from atrous.data.image import write_mask
from atrous.data.labels import CAMVID, CITYSCAPES, CITYSCAPES_LABEL_IDS, VOC, Labels

SHARED = Path(__file__).parents[2] / "shared" / "data"
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


def put_voc(home: Path) -> None:
    sets = home / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    for split, names in {"train": "ab", "val": "c", "trainval": "abc", "test": "z"}.items():
        (sets / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for name in "abc":
        put_image(home / "JPEGImages" / f"{name}.jpg")
        (home / "SegmentationClass").mkdir(exist_ok=True)
        mask = np.full((4, 6), 15, dtype=np.uint8)
        mask[0] = 255
        write_mask(home / "SegmentationClass" / f"{name}.png", mask, VOC)


def put_sbd(root: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    (root / "cls").mkdir(parents=True)
    for name in "acxy":
        mask = np.full((4, 6), 3, dtype=np.uint8)
        scipy_io.savemat(root / "cls" / f"{name}.mat", {"GTcls": {"Boundaries": 0, "Segmentation": mask}})
        put_image(root / "img" / f"{name}.jpg")
    (root / "train.txt").write_text("a\nx\n")
    (root / "val.txt").write_text("c\ny\n")


def test_plain_folder(folder: Path) -> None:
    dataset = read_folder(folder, "train")
    assert dataset.names == ["a", "b", "c"] and len(dataset) == 3 and dataset.labels.names == ("sky", "road")
    name, image, mask = dataset[0]
    assert name == "a" and image.shape == (3, 4, 6) and image.dtype == torch.uint8
    assert mask.shape == (4, 6) and mask.dtype == torch.uint8 and mask[0].tolist() == [1, 255, 0, 0, 0, 0]
    assert splits(folder) == ["train", "val"]
    for data in (folder, str(folder), f"folder:{folder}"):
        assert open_dataset(data, "val").names == ["d"]


def test_samples_come_through_workers_and_pickles(folder: Path) -> None:
    dataset = read_folder(folder, "train")
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


def test_no_mask_is_all_ignored(tmp_path: Path) -> None:
    put_image(tmp_path / "a.jpg")
    sample = SegmentationDataset([Item("a", tmp_path / "a.jpg", None)], TWO)[0]
    assert (sample.mask == 255).all() and sample.mask.shape == (4, 6)


def test_remap_is_checked() -> None:
    with pytest.raises(ValueError, match="expected 256 ids"):
        SegmentationDataset([], TWO, remap=[0, 1])


@pytest.mark.parametrize("inner", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_at_any_of_its_roots(tmp_path: Path, inner: str) -> None:
    put_voc(tmp_path / inner)
    assert splits(tmp_path) == ["train", "trainval", "val"]
    dataset = open_dataset(tmp_path, "trainval")
    assert dataset.names == ["a", "b", "c"] and dataset.labels is VOC
    assert dataset[0].mask.unique().tolist() == [15, 255]
    assert read_voc(tmp_path, "val").names == open_dataset(f"voc:{tmp_path}", "val").names == ["c"]
    with pytest.raises(ValueError, match="no split 'trainaug'; the splits there are train, trainval, val"):
        read_voc(tmp_path, "trainaug")


def test_trainaug_from_converted_masks(tmp_path: Path) -> None:
    home = tmp_path / "VOC2012"
    put_voc(home)
    put_image(home / "JPEGImages" / "x.jpg")
    for name in "abx":
        put_mask(home / "SegmentationClassAug" / f"{name}.png", value=7)
    (home / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("b\nx\n")
    dataset = read_voc(tmp_path, "trainaug")
    assert dataset.names == ["b", "x"] and dataset[0].mask[0, 0] == 7
    lines = "/JPEGImages/x.jpg /SegmentationClassAug/x.png\n\n/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"
    (home / "ImageSets" / "Segmentation" / "trainaug.txt").write_text(lines)
    assert read_voc(tmp_path, "trainaug").names == ["x", "a"]
    (home / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("a\nnowhere\n")
    with pytest.raises(ValueError, match=r"trainaug\.txt: 1 of 2 names have no image: nowhere"):
        read_voc(tmp_path, "trainaug")


@pytest.mark.parametrize("place", ["benchmark_RELEASE/dataset", "VOCdevkit/SBD", "VOCdevkit/VOC2012/sbd"])
def test_trainaug_from_sbd_as_distributed(tmp_path: Path, place: str) -> None:
    put_voc(tmp_path / "VOCdevkit" / "VOC2012")
    put_sbd(tmp_path / place)
    dataset = read_voc(tmp_path, "trainaug")
    assert dataset.names == ["a", "b", "x", "y"], "SBD and VOC's train, less VOC's val"
    assert [int(sample.mask[1, 1]) for sample in dataset] == [15, 15, 3, 3], "VOC's own masks where there are any"


def test_broken_sbd_masks_are_named(tmp_path: Path) -> None:
    put_voc(tmp_path)
    put_sbd(tmp_path / "SBD")
    (tmp_path / "SBD" / "cls" / "x.mat").write_bytes(b"not MATLAB's")
    with pytest.raises(ValueError, match=r"x\.mat: .*expected a MATLAB file"):
        read_voc(tmp_path, "trainaug")[2]


def test_cityscapes_labels_become_train_ids(tmp_path: Path) -> None:
    for city, number in (("ulm", 1), ("aachen", 0), ("aachen", 2)):
        stem = f"{city}_00000{number}_000019"
        put_image(tmp_path / "leftImg8bit" / "train" / city / f"{stem}_leftImg8bit.png", size=(34, 1))
        mask = tmp_path / "gtFine" / "train" / city / f"{stem}_gtFine_labelIds.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(34, dtype=np.uint8)[None]).save(mask)
        Image.fromarray(np.zeros((1, 34), np.uint8)).save(str(mask).replace("labelIds", "instanceIds"))
    dataset = open_dataset(tmp_path, "train")
    assert dataset.names == ["aachen_000000_000019", "aachen_000002_000019", "ulm_000001_000019"]
    assert dataset.labels is CITYSCAPES
    ids = dataset[0].mask[0]
    assert ids[list(CITYSCAPES_LABEL_IDS)].tolist() == list(range(19)) and (ids == 255).sum() == 34 - 19
    mask.unlink()
    with pytest.raises(ValueError, match=r"train: 1 of 3 images have no mask in gtFine/train: aachen_000002"):
        read_cityscapes(tmp_path, "train")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("{root}/nowhere", FileNotFoundError, "nowhere: no such folder"),
        ("voc:{root}/nowhere", FileNotFoundError, "nowhere: no such folder"),
        ("{root}/plain/dataset.yaml", ValueError, "a file; expected the folder"),
        ("{root}", ValueError, "layout not recognised; expected one of folder: dataset.yaml.*voc: .*cityscapes: "),
        ("coco:{root}", ValueError, "unknown kind of data set 'coco'; expected folder, voc, cityscapes"),
        ("voc:{root}/plain", ValueError, "not the layout of voc; expected ImageSets"),
        ("{root}/plain", ValueError, "no split 'dev'; the splits there are train, val"),
    ],
)
def test_what_is_not_there(folder: Path, data: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_dataset(data.format(root=folder.parent), "dev")
    assert "\n" not in str(caught.value)


def test_empty_split_and_bad_labels(folder: Path) -> None:
    (folder / "images" / "test").mkdir()
    with pytest.raises(ValueError, match="images/test: no images; expected dataset.yaml, images/SPLIT/"):
        open_dataset(folder, "test")
    (folder / "dataset.yaml").write_text("name: [sky]")
    with pytest.raises(ValueError, match=r"dataset\.yaml: unknown key 'name' .did you mean 'names'"):
        open_dataset(folder, "train")


def test_shared_camvid() -> None:
    if not (SHARED / "camvid").is_dir():
        pytest.skip("no camvid beside the repository, in shared/data")
    dataset = open_dataset(SHARED / "camvid", "train")
    assert len(dataset) == 367 and dataset.labels == CAMVID
    assert dataset[0].image.shape == (3, 360, 480) and dataset[0].mask.shape == (360, 480)
