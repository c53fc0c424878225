"""Every export that is not read is named, with what to do; the real ones where they are there."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.datasets.dataset import list_split, open_dataset
from atrous.data.datasets.unread import looks_like

FORMATS = Path(__file__).parents[4] / "shared" / "formats"

EXPORTS = {
    "boxes": ("a.xml", "<annotation><object><bndbox>", "boxes in VOC's XML .*: boxes are no masks"),
    "label_me": ("Annotations/a.xml", "<annotation><object><name>", "LabelMe's or VOC's XML"),
    "labelstudio": ("project.json", '{"id": 1, "file_upload": "a.jpg"}', "Label Studio's JSON"),
    "supervisely": ("meta.json", '{"classes": [', "a Supervisely project"),
    "via": ("project.json", '{"_via_settings": {}}', "a project of VGG's Image Annotator"),
    "labelbox": ("export.ndjson", '{"data_row": {"id": "x"}}', "a Labelbox export"),
    "darwin": (
        "a.json",
        '{"version": "2.0", "schema_ref": "https://darwin-public.s3/darwin_json/2.0"}',
        "V7's Darwin JSON",
    ),
    "datumaro": ("annotations/default.json", '{"dm_format_version": "1.0"}', "Datumaro's own JSON"),
    "page": ("export.json", "<!DOCTYPE html><html>", "a web page"),
    "roboflow": ("train/_classes.csv", "filename, cat, dog", "a Roboflow export"),
    "pairs": ("masks/a.png", "", "a folder of images with masks .*: name the classes beside it"),
}

pytestmark = pytest.mark.filterwarnings("ignore:.*unpacking into")


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_are_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    path, content, what = EXPORTS[name]
    (tmp_path / name / path).parent.mkdir(parents=True)
    (tmp_path / name / path).write_text(content)
    (tmp_path / name / "._other.xml").write_text("<annotations>")
    with pytest.raises(ValueError, match=f"{name}: layout not recognised; it looks like {what}") as caught:
        open_dataset(tmp_path / name, "train")
    assert path in str(caught.value) and "published" not in str(caught.value)
    with pytest.raises(ValueError, match=f"not the layout of voc; expected ImageSets.*; it looks like {what}"):
        open_dataset(f"voc:{tmp_path / name}", "train")
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(path, content)
    with pytest.raises(ValueError, match=rf"export\.zip: layout not recognised; it looks like {what}"):
        open_dataset(archive, "train")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("label_me", "no object has a polygon or a mask: draw them"),
        ("labelstudio", "expected the export of the project, a list of tasks: Export, JSON"),
        ("supervisely", "expected the project as Supervisely downloads it, with annotations"),
        ("via", "expected COCO's JSON: export it as that, or convert it with datumaro"),
    ],
)
def test_the_advice_is_what_the_tool_can_export(tmp_path: Path, name: str, advice: str) -> None:
    path, content, _ = EXPORTS[name]
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(content)
    line = looks_like(tmp_path)
    assert line.endswith(advice) and ("CVAT" in line) == (name == "cvat")


@pytest.mark.parametrize("place", [".", "train"])
@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.json", b"", r"a\.json is empty; expected annotations: export anew"),
        ("a.xml", b"\xef\xbb\xbf \r\n", r"a\.xml is empty; expected annotations"),
        ("a.json", b"id,name\n", r"a\.json starts with 'id,name.n', and is no JSON: export anew"),
        ("a.xml", b"{}", r"a\.xml starts with '\{\}', and is no XML: export anew"),
    ],
)
def test_annotations_that_are_empty_or_of_another_kind_are_named(
    tmp_path: Path, place: str, name: str, content: bytes, what: str
) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / name).write_bytes(content)
    Image.new("RGB", (4, 4)).save(tmp_path / place / "x.jpg")
    with pytest.raises(ValueError, match=rf"layout not recognised; .*{what}"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + b"\x00" * 40, bytes(range(256))])
def test_other_files_are_like_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    assert looks_like(tmp_path / "a.bin") == "" and looks_like(tmp_path) == ""


def test_arrays_and_other_names_in_place_of_masks_are_explained(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("names: [a, b]")
    (tmp_path / "images" / "train").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "train" / "x.jpg")
    masks = tmp_path / "masks" / "train"

    def problem() -> str:
        (line,) = list_split(tmp_path, "train").problems
        return line

    assert "1 of 1 images have no mask in masks/train, of the same stem: x; there is no such folder" in problem()
    masks.mkdir(parents=True)
    (masks / "y.mat").write_bytes(b"")
    assert problem().endswith("it has y.mat: name each mask as its image, with .png")
    np.save(masks / "x.npy", np.ones((4, 4), np.uint16))
    assert open_dataset(tmp_path, "train")[0].mask.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("layout", "what"),
    [
        ("supervision-voc-xml", "boxes in VOC's XML"),
        ("binary-gif-masks", "a folder of images with masks"),
    ],
)
def test_real_exports_are_named(layout: str, what: str) -> None:
    if not FORMATS.is_dir():
        pytest.skip("no shared/formats beside the repository")
    assert f"it looks like {what} " in looks_like(FORMATS / layout)
