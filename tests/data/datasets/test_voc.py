"""VOC 2012 and SBD as they are distributed, made small, and every way in which they can be incomplete."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.checks.validate import check
from atrous.data.datasets.dataset import list_split, open_dataset, splits
from atrous.data.datasets.options import DatasetOptions
from atrous.data.images.image_io import write_mask
from atrous.data.labels import VOC
from exports import Region, cvat_masks


def put_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 6, 3)).astype(np.uint8)).save(path)


def put_voc(home: Path) -> None:
    sets = home / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    for split, names in {"train": "ab", "val": "c", "trainval": "abc", "test": "z"}.items():
        (sets / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for seed, name in enumerate("abc"):
        put_image(home / "JPEGImages" / f"{name}.jpg", seed)
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


@pytest.mark.parametrize("inner", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_at_any_of_its_roots(tmp_path: Path, inner: str) -> None:
    put_voc(tmp_path / inner)
    assert splits(tmp_path) == ["train", "trainval", "val"]
    dataset = open_dataset(tmp_path, "trainval")
    assert dataset.names == ["a", "b", "c"] and dataset.labels is VOC
    assert dataset[0].mask.unique().tolist() == [15, 255]
    assert open_dataset(f"voc:{tmp_path}", "val").names == ["c"]
    with pytest.raises(ValueError, match="no split 'trainaug'; the splits there are train, trainval, val; VOC 2012 is"):
        open_dataset(f"voc:{tmp_path}", "trainaug")


def test_trainaug_from_converted_masks(tmp_path: Path) -> None:
    home = tmp_path / "VOC2012"
    put_voc(home)
    put_image(home / "JPEGImages" / "x.jpg")
    for name in "abx":
        (home / "SegmentationClassAug").mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 6), 7, np.uint8)).save(home / "SegmentationClassAug" / f"{name}.png")
    (home / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("b\nx\n")
    dataset = open_dataset(f"voc:{tmp_path}", "trainaug")
    assert dataset.names == ["b", "x"] and dataset[0].mask[0, 0] == 7
    lines = "/JPEGImages/x.jpg /SegmentationClassAug/x.png\n\n/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"
    (home / "ImageSets" / "Segmentation" / "trainaug.txt").write_text(lines)
    assert open_dataset(f"voc:{tmp_path}", "trainaug").names == ["x", "a"]
    (home / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("a\nnowhere\n")
    with pytest.raises(ValueError, match=r"trainaug\.txt: 1 of 2 names have no image: nowhere; VOC 2012 is published"):
        open_dataset(f"voc:{tmp_path}", "trainaug")


@pytest.mark.parametrize("place", ["benchmark_RELEASE/dataset", "VOCdevkit/SBD", "VOCdevkit/VOC2012/sbd"])
def test_trainaug_from_sbd_as_distributed(tmp_path: Path, place: str) -> None:
    put_voc(tmp_path / "VOCdevkit" / "VOC2012")
    put_sbd(tmp_path / place)
    dataset = open_dataset(f"voc:{tmp_path}", "trainaug")
    assert dataset.names == ["a", "b", "x", "y"], "SBD and VOC's train, less VOC's val"
    assert [int(sample.mask[1, 1]) for sample in dataset] == [15, 15, 3, 3], "VOC's own masks where there are any"


def test_broken_sbd_masks_are_named(tmp_path: Path) -> None:
    put_voc(tmp_path)
    put_sbd(tmp_path / "SBD")
    (tmp_path / "SBD" / "cls" / "x.mat").write_bytes(b"not MATLAB's")
    with pytest.raises(ValueError, match=r"x\.mat: .*expected a MATLAB file"):
        open_dataset(f"voc:{tmp_path}", "trainaug")[2]


def test_the_test_split_is_there_to_be_predicted(tmp_path: Path) -> None:
    put_voc(tmp_path)
    assert "test" not in splits(tmp_path), "its name is listed, but its image is not there"
    put_image(tmp_path / "JPEGImages" / "z.jpg", seed=9)
    assert splits(tmp_path) == ["train", "trainval", "val", "test"]
    listing = list_split(tmp_path, "test")
    assert [(item.name, item.mask) for item in listing.items] == [("z", None)] and not listing.problems
    with pytest.raises(
        ValueError, match=r"test\.txt: no masks, for VOC keeps the masks of its test split for its server"
    ):
        open_dataset(tmp_path, "test")
    report = check(tmp_path, allow_empty_classes=True)
    assert report.problems == [] and report.splits["test"].unlabelled
    assert not [line for line in report.warnings if line.startswith("test")]
    (tmp_path / "ImageSets" / "Segmentation" / "test.txt").write_text("z\nlost\n")
    assert "1 of 2 names have no image: lost; VOC 2012" in list_split(tmp_path, "test").problems[0]


FORMATS = Path(__file__).parents[4] / "shared" / "formats"
OWN = ("background", "small leaf")
ROWS = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nsmall leaf:200,10,30::\n"


def put_own(root: Path, mask: Image.Image, **files: str) -> Path:
    """One image in VOC's layout, and files that name its classes."""
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    put_image(root / "JPEGImages" / "a.jpg")
    (root / "SegmentationClass").mkdir()
    mask.save(root / "SegmentationClass" / "a.png")
    for stem, text in files.items():
        (root / f"{stem}.txt").write_text(text)
    return root


def ids_image(value: int = 1, colours: tuple[tuple[int, int, int], ...] = ()) -> Image.Image:
    image = Image.fromarray(np.array([[0, 0, 0, value, value, value]] * 4, np.uint8))
    if colours:
        image.putpalette([part for colour in colours for part in colour])
    return image


@pytest.mark.parametrize(
    ("mask", "files"),
    [
        (ids_image(), {"labels": "background\nsmall leaf\n"}),
        (ids_image(), {"labels": "__ignore__\nbackground\nsmall leaf\n"}),
        (ids_image(), {"class_names": "background\nsmall leaf"}),
        (ids_image(1, ((0, 0, 0), (128, 0, 0))), {"labels": "background\nsmall leaf\n"}),
        (ids_image(1, ((0, 0, 0), (200, 10, 30))), {"labelmap": ROWS}),
        (ids_image(1, ((0, 0, 0), (200, 10, 30))).convert("RGB"), {"labelmap": ROWS}),
        (ids_image(1, ((0, 0, 0), (200, 10, 30))).convert("RGB"), {"labelmap": ROWS, "labels": "x\ny\n"}),
    ],
)
@pytest.mark.parametrize("inner", ["", "VOCdevkit/VOC2012"])
def test_own_classes_are_read_as_they_are_named(
    tmp_path: Path, mask: Image.Image, files: dict[str, str], inner: str
) -> None:
    put_own(tmp_path / inner, mask, **files)
    for data in (str(tmp_path), f"voc:{tmp_path}"):
        dataset = open_dataset(data, "train")
        assert dataset.labels.names == OWN and dataset[0].mask[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert check(tmp_path).problems == []


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (ids_image(), r"a\.png: ids without a palette; expected VOC's colours; if these are other classes"),
        (
            ids_image(1, ((0, 0, 0), (200, 10, 30))),
            r"id 1 has the colour \(200, 10, 30\); expected \(128, 0, 0\), that ",
        ),
        (ids_image(1, ((0, 0, 0), (200, 10, 30))).convert("RGB"), r"colour \(200, 10, 30\) in 12 pixels"),
        (ids_image(30, tuple((i, 0, 0) for i in range(31))), r"a\.png: mask has id 30 \(12 pixels\); expected 0..20"),
    ],
)
def test_without_names_only_vocs_own_masks_are_vocs(tmp_path: Path, mask: Image.Image, message: str) -> None:
    put_own(tmp_path, mask)
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path, "train")[0]
    assert check(tmp_path).problems != []


def test_ids_beside_a_labelmap_are_read_as_the_message_says(tmp_path: Path) -> None:
    root = put_own(tmp_path, ids_image(), labelmap=ROWS)
    (problem,) = check(root).problems
    assert "(1, 1, 1)" in problem and problem.endswith("without colours: move labelmap.txt elsewhere")
    (root / "labelmap.txt").unlink()
    (root / "labels.txt").write_text("background\nsmall leaf\n")
    assert check(root).problems == []


def test_gray_masks_of_vocs_own_images_are_vocs(tmp_path: Path) -> None:
    put_own(tmp_path, ids_image(15))
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (tmp_path / folder / f"a.{suffix}").rename(tmp_path / folder / f"2007_000032.{suffix}")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032")
    assert open_dataset(tmp_path, "train")[0].mask[0].tolist() == [0, 0, 0, 15, 15, 15]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimg.v1\r\n\r\nmy photo \r\n",
        "img.v1.jpg\nmy photo.jpg",
        "\nimg.v1 m/img.v1.png\nmy photo",
        "img.v1 1\nmy photo",
    ],
)
def test_lists_as_people_and_tools_write_them(tmp_path: Path, text: str) -> None:
    put_own(tmp_path, ids_image(), labels="a\nb\n")
    for name in ("img.v1", "my photo"):
        put_image(tmp_path / "JPEGImages" / f"{name}.jpg")
        ids_image().save(tmp_path / "SegmentationClass" / f"{name}.png")
    for clutter in ("._train.txt", ".DS_Store", "Thumbs.db"):
        (tmp_path / "ImageSets" / "Segmentation" / clutter).write_bytes(b"\xff")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text(text, "utf-8")
    assert splits(tmp_path) == ["train"]
    assert open_dataset(tmp_path, "train").names == ["img.v1", "my photo"]


def test_own_test_split_has_masks_and_absent_images_are_explained(tmp_path: Path) -> None:
    put_own(tmp_path, ids_image(), labels="a\nb\n")
    sets = tmp_path / "ImageSets" / "Segmentation"
    (sets / "train.txt").rename(sets / "test.txt")
    assert splits(tmp_path) == ["test"] and len(open_dataset(tmp_path, "test")) == 1
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 1 names have no image: a; JPEGImages is empty: export with images"):
        open_dataset(tmp_path, "test")


def test_cvats_export_is_read_to_the_pixel() -> None:
    if not (FORMATS / "voc_segmentation").is_dir():
        pytest.skip("no shared/formats beside the repository")
    for split in splits(FORMATS / "voc_segmentation"):
        for name, _, mask in open_dataset(FORMATS / "voc_segmentation", split):
            assert (mask.numpy() == np.array(Image.open(FORMATS / "truth" / f"{name}.png"))).all(), name


def test_lists_of_cvat_with_folders_and_spaces_and_images_elsewhere(tmp_path: Path) -> None:
    data = {"day 1/photo 1": [Region("leaf", 0, 0, 3, 3)], "photo 0": [Region("stem", 0, 0, 3, 3)]}
    for stem in data:
        (tmp_path / "SegmentationClass" / stem).parent.mkdir(parents=True, exist_ok=True)
    cvat_masks(tmp_path, data, ("leaf", "stem"))
    (tmp_path / "JPEGImages").rename(tmp_path / "photos")
    assert splits(tmp_path) == ["all"], "CVAT calls it default"
    with pytest.raises(ValueError, match=r"2 of 2 names have no image: .*JPEGImages is empty: .*--images FOLDER"):
        open_dataset(tmp_path, "all")
    dataset = open_dataset(tmp_path, "all", DatasetOptions(images=str(tmp_path / "photos")))
    assert {name: int(mask[0, 0]) for name, _, mask in dataset} == {"day 1/photo 1": 1, "photo 0": 2}
