"""Label Studio: its brush codec, every kind of region, several annotators, brush PNGs, addresses of images."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from atrous.data.datasets.label_studio_regions import decode_brush
from atrous.data.datasets.options import DatasetOptions
from exports import HEIGHT, WIDTH, Region, brush, label_studio, label_studio_task, png, samples, save_image
from formats import FORMATS, worst_iou

LEAF, STEM = Region("leaf", 0, 0, 9, 9), Region("stem", 4, 4, 12, 20)


def put(root: Path, *tasks: dict[str, Any], file: str = "project.json") -> Path:
    save_image(root / "images" / "a.png")
    (root / file).write_text(json.dumps(tasks))
    return root


def task(*regions: Region, number: int = 0, stem: str = "a", **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = label_studio_task(number, stem, list(regions))
    made["annotations"][0].update(more)
    return made


def result(kind: str, **value: Any) -> dict[str, Any]:
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {"id": kind, "type": kind, "value": value, "from_name": "tag", "to_name": "image", **size}


def annotated(*results: dict[str, Any]) -> dict[str, Any]:
    return task(result=list(results))


def read(root: Path, **options: str) -> np.ndarray:
    return open_dataset(root, "all", DatasetOptions(**options))[0].mask.numpy()


def pack(values: np.ndarray, chosen: list[tuple[bool, int]], sizes: tuple[int, ...] = (3, 4, 8, 16)) -> bytes:
    """Label Studio's packing with runs as `chosen`: whether one value repeats, and how many at most."""
    bits, place, turn = f"{values.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes), 0, 0
    while place < values.size:
        repeats, most = chosen[turn % len(chosen)]
        turn += 1
        same = np.flatnonzero(values[place:] != values[place])
        length = min(most, int(same[0]) if repeats and same.size else values.size - place)
        index = next(index for index, size in enumerate(sizes) if length <= 1 << size)
        bits += f"{int(repeats)}{index:02b}{length - 1:0{sizes[index]}b}"
        bits += "".join(f"{value:08b}" for value in values[place : place + (1 if repeats else length)])
        place += length
    return int(bits.ljust(-len(bits) // 8 * -8, "0"), 2).to_bytes((len(bits) + 7) // 8, "big")


@settings(deadline=None)
@given(
    values=st.lists(st.sampled_from([0, 0, 0, 7, 255]), min_size=1, max_size=80),
    chosen=st.lists(st.tuples(st.booleans(), st.integers(1, 70)), min_size=1, max_size=5),
)
def test_brushes_come_back_however_they_were_packed(values: list[int], chosen: list[tuple[bool, int]]) -> None:
    array = np.array(values, dtype=np.uint8)
    np.testing.assert_array_equal(decode_brush(pack(array, chosen), array.size), array)


def test_a_brush_that_is_damaged_is_refused() -> None:
    data = pack(np.arange(64, dtype=np.uint8), [(False, 8)])
    with pytest.raises(ValueError, match="a brush of 64 values of 8 bits; expected 32 of 8, RGBA of the image's size"):
        decode_brush(data, 32)
    with pytest.raises(ValueError, match=r"a brush that ends after \d+ of 64 values; expected all: export it anew"):
        decode_brush(data[:-9], 64)
    with pytest.raises(ValueError, match="a brush of 0 values"):
        decode_brush(b"", 64)


def test_every_kind_of_region_and_later_over_earlier(tmp_path: Path) -> None:
    canvas = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    canvas[14:16, :3, 3] = 255
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    x, y = 100 / WIDTH, 100 / HEIGHT
    corners = [[2 * x, 2 * y], [5 * x, 2 * y], [5 * x, 5 * y], [2 * x, 5 * y]]
    put(
        tmp_path,
        annotated(
            result("brushlabels", format="rle", rle=brush(LEAF.mask()), brushlabels=["leaf"]),
            result("polygonlabels", points=corners, polygonlabels=["stem"]),
            result(
                "rectanglelabels", x=12 * x, y=2 * y, width=4 * x, height=2 * y, rotation=0, rectanglelabels=["leaf"]
            ),
            result(
                "rectanglelabels", x=23 * x, y=2 * y, width=4 * x, height=2 * y, rotation=90, rectanglelabels=["stem"]
            ),
            result(
                "ellipselabels", x=16 * x, y=12 * y, radiusX=4 * x, radiusY=2 * y, rotation=0, ellipselabels=["leaf"]
            ),
            result("bitmasklabels", imageDataURL=url, bitmasklabels=["stem"]),
        ),
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[LEAF.mask()] = 1
    expected[2:6, 2:6] = 2
    expected[2:4, 12:16] = 1
    expected[2:6, 21:23] = 2  # turned about its corner, clockwise
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    expected[((columns - 16) / 4) ** 2 + ((rows - 12) / 2) ** 2 <= 1] = 1
    expected[14:16, :3] = 2
    np.testing.assert_array_equal(read(tmp_path), expected)
    assert "2 regions are boxes, and are filled: task 0" in str(list_split(tmp_path, "all").warnings)


def test_what_is_no_region_is_left_out_with_a_count(tmp_path: Path) -> None:
    polygon = result("polygonlabels", points=[[0, 0], [50, 0], [50, 50]], polygonlabels=["leaf"])
    bare = {**result("polygon", points=[[0, 0], [50, 0], [50, 50]]), "id": "other"}
    put(
        tmp_path,
        annotated(
            polygon,
            {**result("polygon", points=[[0, 0], [50, 0], [50, 50]]), "id": "polygonlabels"},  # the same, unlabelled
            bare,
            result("keypointlabels", x=1, y=1, width=1, keypointlabels=["leaf"]),
            result("choices", choices=["good"]),
            {**polygon, "item_index": 1},
        ),
    )
    warnings = str(list_split(tmp_path, "all").warnings)
    for line in (
        "1 regions have no label, and are left out: task 0",
        "1 regions of leaf have no area that is read, such as points, and are left out: task 0",
        "1 results of the type choices are no regions, and are left out: task 0",
        "1 regions are of further images of a task, and are left out: task 0",
    ):
        assert line in warnings
    assert {*np.unique(read(tmp_path)).tolist()} == {0, 1}


def test_of_several_annotators_ground_truth_then_the_newest_counts(tmp_path: Path) -> None:
    def by(who: int, region: Region, when: str, **more: Any) -> dict[str, Any]:
        (one,) = task(region, id=who, completed_by={"id": who, "email": f"p{who}@x.org"}, updated_at=when)[
            "annotations"
        ]
        return {**one, **more}

    made = task(LEAF)
    leaf, stem = by(1, LEAF, "2026-01-02"), by(2, STEM, "2026-01-03")
    made["annotations"] = [stem, leaf, by(3, LEAF, "2026-01-09", was_cancelled=True)]
    made["predictions"] = [by(4, LEAF, "2026-01-10")]
    put(tmp_path, made)
    assert list_split(tmp_path, "all").labels.names == ("background", "leaf", "stem")
    assert read(tmp_path)[12, 20] == 2, "the newest that is not cancelled"
    warnings = str(list_split(tmp_path, "all").warnings)
    assert "1 images have several annotations: the ground truth or the newest counts, unless --annotator" in warnings
    assert "(annotation 2 of 2)" in warnings and "1 annotations were cancelled (skipped), and are left out" in warnings
    assert read(tmp_path, annotator="p1@x.org")[0, 0] == 1 == read(tmp_path, annotator="1")[0, 0]
    with pytest.raises(ValueError, match=r"no annotation of 'p9@x.org'; did you mean p[12]@x.org"):
        read(tmp_path, annotator="p9@x.org")
    made["annotations"][1]["ground_truth"] = True
    put(tmp_path, made)
    assert read(tmp_path)[0, 0] == 1


def test_tasks_without_annotation_are_left_out_and_empty_ones_are_background(tmp_path: Path) -> None:
    open_task, empty, skipped = task(number=1, stem="b"), task(number=2, stem="c"), task(LEAF, number=3, stem="d")
    open_task["annotations"], open_task["predictions"] = [], [{"result": []}]
    skipped["annotations"][0]["was_cancelled"] = True
    for stem in "bcd":
        save_image(tmp_path / "images" / f"{stem}.png")
    put(tmp_path, task(LEAF), open_task, empty, skipped)
    listing = list_split(tmp_path, "all")
    assert listing.left_out == {"no annotation, or cancelled ones only": 2}
    assert "1 tasks have predictions only, which are no annotations: task 1" in str(listing.warnings)
    assert [(item.name, int(item.mask.read().sum())) for item in listing.items] == [("a", 100), ("c", 0)]  # type: ignore[union-attr]


def test_an_export_without_annotations_says_why_it_has_no_images(tmp_path: Path) -> None:
    only = task(number=1)
    only["annotations"], only["predictions"] = [], [{"result": []}]
    save_image(tmp_path / "images" / "a.png")
    put(tmp_path, only)
    message = "no images: 1 left out, no annotation, .* 1 tasks have predictions only, which are no annotations: task 1"
    with pytest.raises(ValueError, match=message):
        list_split(tmp_path, "all")


def test_the_configuration_orders_the_classes(tmp_path: Path) -> None:
    labels = '<Label value="stem"/><Label value="Leaf of it" alias="leaf"/><Label value="background"/>'
    choices = '<Choices name="q" toName="image"><Choice value="good"/></Choices>'
    put(tmp_path, task(LEAF, STEM))
    brushes = f'<BrushLabels name="t" toName="image">{labels}</BrushLabels>'
    view = f'<View><Image name="image" value="$image"/>{choices}{brushes}</View>'
    (tmp_path / "config.xml").write_text(view)
    assert open_dataset(tmp_path, "all").labels.names == ("background", "stem", "leaf")
    (tmp_path / "config.xml").write_text(view.replace('"stem"', '"background"'))
    with pytest.raises(ValueError, match=r"config\.xml: names has 'background' 2 times"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("address", "stored"),
    [
        ("/data/upload/12/0123abcd-my_photo.png", "0123abcd-my_photo.png"),
        ("/data/upload/12/0123abcd-my_photo.png", "my photo.png"),
        ("/data/upload/12/0123abcd-caf%C3%A9.png", "café.png"),
        ("/data/local-files/?d=photos/sub/x%20y.png", "sub/x y.png"),
        ("s3://bucket/some/where/x.png", "x.png"),
        ("https://example.org/x.png?size=large#top", "x.png"),
        (f"/tasks/1/resolve/?fileuri={base64.b64encode(b's3://bucket/x.png').decode()}", "x.png"),
        ("../../etc/x.png", "x.png"),
    ],
)
def test_addresses_of_images(tmp_path: Path, address: str, stored: str) -> None:
    save_image(tmp_path / "pictures" / stored)
    made = task(LEAF)
    made["data"], made["file_upload"] = {"caption": "x", "image": address}, None
    (tmp_path / "p.json").write_text(json.dumps([made]))
    listing = list_split(tmp_path, "all", DatasetOptions(images=str(tmp_path / "pictures")))
    assert [item.image for item in listing.items] == [tmp_path / "pictures" / stored], listing.problems


def test_files_named_as_splits_are_splits_and_share_their_classes(tmp_path: Path) -> None:
    put(tmp_path, task(LEAF), file="train.json")
    put(tmp_path, task(STEM), file="validation.json")
    assert splits(tmp_path) == ["train", "val"]
    assert open_dataset(tmp_path, "train").labels == open_dataset(tmp_path, "val").labels


def brushes(root: Path, made: dict[str, Any], *regions: Region, tag: str = "tag") -> None:
    for place, region in enumerate(regions):
        name = f"task-{made['id']}-annotation-{made['annotations'][0]['id']}-by-a@b.org-{tag}-{region.name}-{place}.png"
        (root / name).write_bytes(png(region.mask()))


def test_brush_masks_are_merged_where_the_json_has_no_region(tmp_path: Path) -> None:
    made = task(LEAF)
    brushes(tmp_path, made, Region("half-ripe", 4, 4, 12, 20), LEAF)
    made["annotations"][0]["result"] = []
    put(tmp_path, made)
    mask = read(tmp_path)
    assert open_dataset(tmp_path, "all").labels.names == ("background", "half-ripe", "leaf")
    assert (mask[0, 0], mask[12, 20], mask[5, 5]) == (2, 1, 2), "the smaller on top"
    overlap = "1 tasks have brush masks that overlap: the smaller is on top: task 0, 36 pixels"
    assert overlap in str(list_split(tmp_path, "all").warnings)
    made["annotations"] = []
    put(tmp_path, made)
    assert (read(tmp_path) == mask).all()


def test_brush_masks_alone_are_said_to_need_the_json(tmp_path: Path) -> None:
    brushes(tmp_path, task(LEAF), LEAF, STEM)
    assert kind_of(tmp_path) == "label_studio"
    listing = list_split(tmp_path, "all")
    assert listing.read_as == "2 brush masks of Label Studio, of 1 task and 3 classes, without images"
    with pytest.raises(ValueError, match=r"only the project's JSON says which image that is: export it as JSON, too"):
        open_dataset(tmp_path, "all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"original_width": 9}, "regions in images of several sizes; expected one image"),
        (
            {"value": {"points": [[0, 0], ["x", 0], [9, 9]], "polygonlabels": ["leaf"]}},
            "region 1, leaf: could not convert",
        ),
        ({"value": {"rle": [0, 300], "brushlabels": ["leaf"]}}, "region 1, leaf: bytes must be in range"),
        ({"value": {"imageDataURL": "http://x", "bitmasklabels": ["leaf"]}}, "'http://x'; expected data:image/png"),
        ({"value": {"x": 1, "y": 1, "width": 0, "height": 9, "rectanglelabels": ["leaf"]}}, "expected some width"),
    ],
)
def test_regions_that_cannot_be_drawn_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    made = task(LEAF, LEAF)
    made["annotations"][0]["result"][1].update(change)
    with pytest.raises(ValueError, match=rf"project\.json, task 0: .*{message}|project\.json, task 0: {message}"):
        read(put(tmp_path, made))


def test_a_file_that_changes_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, task(LEAF)), "all")
    (tmp_path / "project.json").write_text("[]" + " " * 100_000)
    with pytest.raises(ValueError, match="task 0: the file has changed since it was listed"):
        dataset[0]


def test_two_exports_of_a_project_are_not_two_data_sets(tmp_path: Path) -> None:
    label_studio(tmp_path, samples(3))
    first = next(tmp_path.glob("project*.json"))
    first.with_name("project-1-at-2026-02-02-00-00-0123abcd.json").write_bytes(first.read_bytes())
    listing = list_split(tmp_path, "all")
    assert len(listing.items) == 3 and "3 images have several annotations" in str(listing.warnings)


def test_the_real_brush_masks_with_their_json(tmp_path: Path) -> None:
    if not FORMATS.is_dir():
        pytest.skip("no shared/formats beside the repository")
    tasks = json.loads(next((FORMATS / "labelstudio-json").glob("project*.json")).read_text())
    for each in tasks:
        each["annotations"][0]["result"] = []
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    for path in (FORMATS / "labelstudio-png").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "images").symlink_to(FORMATS / "labelstudio-json" / "images")
    assert worst_iou(str(tmp_path)) == 1
