"""Every labelling tool's export: difficult names, and what is broken in it, one table over all layouts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from atrous.data.datasets.options import DatasetOptions
from exports import HEIGHT, NAMES, WIDTH, WRITERS, Region, samples, save_image, truth
from formats import worst_iou

ALL = pytest.mark.parametrize("tool", WRITERS)
DRAWN = pytest.mark.parametrize("tool", [name for name in WRITERS if name not in ("cvat_masks", "roboflow")])
"""Those that have a label at each region, and not masks of ids or colours."""
BY_ID = ("coco", "yolo")
"""Those whose regions have the number of a class."""
LISTING = [name for name in WRITERS if name not in ("labelme", "labelme_xml", "label_studio", "label_studio_min")]
"""Those that list their classes, whether they occur or not."""


def read(root: Path, split: str = "all", options: DatasetOptions | None = None) -> dict[str, np.ndarray]:
    dataset = open_dataset(root, split, options or DatasetOptions())
    return {name: mask.numpy() for name, _, mask in dataset}


@ALL
def test_masks_and_difficult_names_come_back_to_the_pixel(tmp_path: Path, tool: str) -> None:
    kind, write = WRITERS[tool]
    data = samples(3)
    write(tmp_path, data, NAMES)
    assert kind_of(tmp_path) == kind and splits(tmp_path) == ["all"]
    listing = list_split(tmp_path, "all")
    assert (listing.problems, listing.warnings, dict(listing.left_out)) == ((), (), {})
    names = listing.labels.names
    if tool in LISTING:
        assert names == ("background", *NAMES), "in the order of the tool"
    else:
        used = {region.name for regions in data.values() for region in regions}
        assert names == ("background", *sorted(used)), "sorted"
    masks = read(tmp_path)
    assert len(masks) == len(data)
    for (name, mask), (stem, regions) in zip(sorted(masks.items()), sorted(data.items()), strict=True):
        assert stem.replace(" ", "_").replace(",", "") in name.replace(" ", "_").replace(",", "")
        np.testing.assert_array_equal(mask, truth(regions, names))


def texts(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.suffix in (".xml", ".json", ".txt", ".yaml", ".csv")]


@ALL
def test_windows_line_ends_and_byte_order_marks_change_nothing(tmp_path: Path, tool: str) -> None:
    WRITERS[tool][1](tmp_path, samples(3), NAMES)
    before = read(tmp_path)
    for path in texts(tmp_path):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    after = read(tmp_path)
    assert before.keys() == after.keys() and all((after[name] == mask).all() for name, mask in before.items())


def images(root: Path) -> list[Path]:
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix in (".png", ".jpg")
        and not {"Masks", "SegmentationClass"} & {*path.parts}
        and not path.stem.endswith("_mask")
    ]


@ALL
def test_a_missing_image_is_named_and_found_elsewhere(tmp_path: Path, tool: str) -> None:
    data = samples(3)
    WRITERS[tool][1](tmp_path / "export", data, NAMES)
    before = read(tmp_path / "export")
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    gone = images(tmp_path / "export")[0]
    gone.rename(tmp_path / "elsewhere" / "sub" / gone.name)
    if tool == "roboflow":  # where the image and its mask are one
        warnings = list_split(tmp_path / "export", "all").warnings
        assert any("have no image" in line and gone.stem in line for line in warnings)
        return
    with pytest.raises(ValueError, match=r"\b1 (of 3|text files|images of)") as caught:
        open_dataset(tmp_path / "export", "all")
    tidy = gone.stem.replace(" ", "_").replace(",", "")
    assert tidy in str(caught.value).replace(" ", "_").replace(",", "")
    after = read(tmp_path / "export", options=DatasetOptions(images=str(tmp_path / "elsewhere")))
    assert before.keys() == after.keys() and all((after[name] == mask).all() for name, mask in before.items())


@ALL
def test_an_image_of_another_size_is_named(tmp_path: Path, tool: str) -> None:
    WRITERS[tool][1](tmp_path, samples(3), NAMES)
    for path in images(tmp_path):
        save_image(path, (WIDTH - 1, HEIGHT))
    if tool == "yolo":  # which has shares of the size
        assert {mask.shape for mask in read(tmp_path).values()} == {(HEIGHT, WIDTH - 1)}
        return
    with pytest.raises(ValueError, match=rf"mask of {WIDTH}x{HEIGHT}; expected {WIDTH - 1}x{HEIGHT}, the size of "):
        read(tmp_path)


@ALL
@pytest.mark.parametrize("content", [b"", b"\n", b"nothing of the kind", b"\xff\xfe\x00"])
def test_an_empty_or_other_file_is_named(tmp_path: Path, tool: str, content: bytes) -> None:
    kind, write = WRITERS[tool]
    path = write(tmp_path, samples(3), NAMES)
    path.write_bytes(content)
    if tool == "yolo" and not content.strip():
        assert any(not mask.any() for mask in read(tmp_path).values()), "an image without an object"
        return
    with pytest.raises(ValueError) as caught:
        read(tmp_path)
    assert path.name in str(caught.value) or str(path) in str(caught.value)
    assert "expected" in str(caught.value) or "export anew" in str(caught.value)


@pytest.mark.parametrize("tool", [name for name in WRITERS if name not in ("yolo", "roboflow", "cvat_masks")])
def test_half_a_file_is_named(tmp_path: Path, tool: str) -> None:
    path = WRITERS[tool][1](tmp_path, samples(3), NAMES)
    content = path.read_bytes()
    path.write_bytes(content[: 2 * len(content) // 3])
    with pytest.raises(ValueError, match="expected") as caught:
        read(tmp_path)
    assert str(path) in str(caught.value)


@DRAWN
def test_an_unknown_label_is_named(tmp_path: Path, tool: str) -> None:
    data = {"a": [Region("leaf", 0, 0, 9, 9), Region("leef", 0, 10, 9, 19)]}
    path = WRITERS[tool][1](tmp_path, data, ("leaf", "leef"))
    if tool in ("labelme", "labelme_xml"):
        (tmp_path / "labels.txt").write_text("leaf\n")
    elif tool.startswith("label_studio"):
        config = '<View><BrushLabels name="tag" toName="image"><Label value="leaf"/></BrushLabels></View>'
        (tmp_path / "label_config.xml").write_text(config)
    elif tool == "cvat":
        path.write_text(path.read_text().replace("<name>leef</name>", "<name>stem</name>"))
    elif tool == "supervisely":
        meta = tmp_path / "meta.json"
        meta.write_text(meta.read_text().replace('"leef"', '"stem"'))
    elif tool == "coco":
        path.write_text(path.read_text().replace('"id": 5,\n   "name"', '"id": 6,\n   "name"'))
    else:
        (tmp_path / "data.yaml").write_text("names: [leaf]\n")
    with pytest.raises(ValueError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert str(path) in message, message
    if tool not in BY_ID:
        assert "leef" in message and "did you mean leaf" in message, message


@pytest.mark.parametrize("tool", LISTING)
def test_a_class_that_is_named_twice_is_refused(tmp_path: Path, tool: str) -> None:
    data = {"a": [Region("leaf", 0, 0, 9, 9)]}
    WRITERS[tool][1](tmp_path, data, ("leaf", "stem"))
    for path in texts(tmp_path):
        path.write_text(path.read_text().replace("stem", "leaf"))
    with pytest.raises(ValueError, match="'leaf' 2 times; expected every name once"):
        read(tmp_path)


def broken(path: Path, change: Callable[[list[list[float]]], list[list[float]]]) -> None:
    """Change the first polygon of a file."""
    points = np.array(Region("leaf", 2, 3, 9, 12).points, dtype=float)
    new = np.array(change(points.tolist()))
    text = path.read_text()
    if path.suffix == ".txt":
        path.write_text("0 " + " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in new) + "\n")
    elif path.suffix == ".xml" and "<pt>" in text:
        start, end = text.index("<pt>"), text.rindex("</pt>") + len("</pt>")
        pairs = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in new)
        path.write_text(text[:start] + pairs + text[end:])
    elif path.suffix == ".xml":
        old = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
        assert old in text
        path.write_text(text.replace(old, ";".join(f"{x:.2f},{y:.2f}" for x, y in new)))
    else:
        document = json.loads(text)
        replace_points(document, new)
        path.write_text(json.dumps(document))


def replace_points(part: object, new: np.ndarray) -> None:
    if isinstance(part, list):
        for entry in part:
            replace_points(entry, new)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key == "segmentation":
                part[key] = [new.ravel().tolist()]
            elif key == "exterior":
                part[key] = new.tolist()
            elif key == "points" and isinstance(value, list):
                percent = "polygonlabels" in part
                part[key] = (new * (100 / WIDTH, 100 / HEIGHT) if percent else new).tolist()
            else:
                replace_points(value, new)


def polygon_of(tool: str, root: Path) -> Path:
    """An export with one polygon."""
    regions = [Region("stem", 12, 0, 14, 1), Region("leaf", 2, 3, 9, 12)]
    if tool in ("labelme", "labelme_xml", "label_studio", "label_studio_min", "coco"):  # polygons first
        regions = regions[1:]
    return WRITERS[tool][1](root, {"a": regions}, ("leaf", "stem"))


@DRAWN
@pytest.mark.parametrize(
    ("change", "actual"),
    [
        (lambda points: points[:2], r"2 points|boxes, five numbers"),
        (lambda points: [[x + 30, y] for x, y in points], r"outside the image|coordinates"),
        (lambda points: [[x + 1e6, y] for x, y in points], r"outside the image|coordinates|about the image"),
    ],
    ids=["two points", "outside", "far outside"],
)
def test_a_polygon_that_cannot_be_drawn_is_named(tmp_path: Path, tool: str, change: Callable, actual: str) -> None:
    path = polygon_of(tool, tmp_path)
    broken(path, change)
    if tool == "coco" and "2 points" in actual:
        assert "fewer than three points, which have no area and are left out: annotation 0" in str(
            list_split(tmp_path, "all").warnings
        )
        return
    with pytest.raises(ValueError, match=actual) as caught:
        read(tmp_path)
    assert str(path) in str(caught.value) and "expected" in str(caught.value)


@DRAWN
def test_a_polygon_that_crosses_itself_is_filled_by_the_even_odd_rule(tmp_path: Path, tool: str) -> None:
    broken(polygon_of(tool, tmp_path), lambda points: [points[0], points[2], points[1], points[3]])
    (mask,) = read(tmp_path).values()
    leaf = list_split(tmp_path, "all").labels.names.index("leaf")
    assert (mask[5, 3], mask[5, 12], mask[3, 7], mask[8, 7]) == (leaf, leaf, 0, 0)


@pytest.mark.parametrize("tool", ["cvat", "labelme_xml", "supervisely", "cvat_masks"])
def test_splits_share_their_classes(tmp_path: Path, tool: str) -> None:
    kind, write = WRITERS[tool]
    first, second = samples(3, count=1), samples(4, count=1)
    write(tmp_path, first, NAMES, split="train")  # type: ignore[call-arg]
    write(tmp_path, second, NAMES, split="Validation")  # type: ignore[call-arg]
    assert splits(tmp_path) == ["train", "val"] and kind_of(tmp_path) == kind
    names = open_dataset(tmp_path, "train").labels.names
    assert open_dataset(tmp_path, "val").labels.names == names
    for split, data in (("train", first), ("val", second)):
        ((stem, regions),) = data.items()
        ((name, mask),) = read(tmp_path, split).items()
        assert name == stem
        np.testing.assert_array_equal(mask, truth(regions, names))


@ALL
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_any_content_is_read_or_a_value_error(tmp_path: Path, tool: str, data: st.DataObject) -> None:
    root = tmp_path / tool
    kind, write = WRITERS[tool]
    path = write(root, {"a": [Region("leaf", 0, 0, 9, 9), Region("stem", 0, 12, 9, 20)]}, ("leaf", "stem"))
    sound = path.read_bytes()
    place, length = data.draw(st.integers(0, len(sound))), data.draw(st.integers(0, 20))
    new = data.draw(st.one_of(st.binary(max_size=6), st.sampled_from([b"-1", b"1e9", b"nan", b"[]", b"{}", b"null"])))
    path.write_bytes(sound[:place] + new + sound[place + length :])
    read_or_refuse(kind, root)


def read_or_refuse(kind: str, root: Path) -> None:
    try:
        for split in splits(f"{kind}:{root}"):
            for item in list_split(f"{kind}:{root}", split).items:
                if item.mask is not None and not isinstance(item.mask, Path):
                    item.mask.read()
    except (ValueError, FileNotFoundError) as error:
        assert str(root) in str(error) and "\n" not in str(error)


VALUES = [None, True, -1, 0, 1e308, 10**30, "", "x", "9", [], {}, [[]], [None], {"id": 1}, "leaf"]


def places(part: object) -> list[tuple[list | dict, object]]:
    """Every container in a document with each of its keys."""
    keys = part.keys() if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
    actual = [(part, key) for key in keys]
    return actual + [place for key in keys for place in places(part[key])]  # type: ignore[index]


@pytest.mark.parametrize("tool", ["labelme", "label_studio", "label_studio_min", "supervisely", "coco"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_json_of_another_form_is_read_or_a_value_error(tmp_path: Path, tool: str, data: st.DataObject) -> None:
    root = tmp_path / tool
    kind, write = WRITERS[tool]
    path = write(root, {"a": [Region("leaf", 0, 0, 9, 9), Region("stem", 0, 12, 9, 20)]}, ("leaf", "stem"))
    if tool == "supervisely" and data.draw(st.booleans()):
        path = root / "meta.json"
    document = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        if all_places := places(document):
            container, key = all_places[data.draw(st.integers(0, len(all_places) - 1))]
            container[key] = copy.deepcopy(data.draw(st.sampled_from(VALUES)))  # type: ignore[index, call-overload]
    path.write_text(json.dumps(document))
    read_or_refuse(kind, root)


@pytest.mark.parametrize(
    ("layout", "least"),
    [
        ("cvat", 1),
        ("cvat-polygons", 0.88),
        ("label_me", 1),
        ("labelstudio-json", 1),
        ("supervisely", 1),
        ("supervision-coco", 1),
        ("coco_instances", 0.8),
        ("coco_instances-rle", 1),
        ("supervision-yolo", 0.97),
        ("voc_segmentation", 1),
        ("roboflow-png-masks", 1),
    ],
)
def test_real_exports_give_the_true_masks(layout: str, least: float) -> None:
    assert worst_iou(layout) >= least


@pytest.mark.parametrize("tool", ["labelme", "label_studio", "supervisely"])
def test_a_size_that_is_true_is_no_size(tmp_path: Path, tool: str) -> None:
    kind, write = WRITERS[tool]
    path = write(tmp_path / tool, {"a": [Region("leaf", 0, 0, 9, 9)]}, ("leaf",))
    document = json.loads(path.read_text())
    for container, key in places(document):
        if key in ("height", "original_height", "imageHeight"):
            container[key] = True  # type: ignore[index, call-overload]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=path.name):
        dataset = open_dataset(f"{kind}:{tmp_path / tool}", "all")
        dataset[0]
