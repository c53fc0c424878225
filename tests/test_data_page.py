"""What docs/data.md says is so: its commands run on small data of each tool, and print what it shows."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exports
from atrous.cli.parser import main
from formats import worst_iou
from own_data import photo, stored, text

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
NAMES = ("leaf", "stem")
SIZE = (exports.HEIGHT, exports.WIDTH)


def examples() -> list[tuple[str, list[str], str]]:
    """Section, its commands, and what they print."""
    actual = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0]
        for commands, printed in re.findall(r"```sh\n(.*?)```(?:\n\n```text\n(.*?)```)?", section, re.DOTALL):
            actual.append((title, commands.strip().splitlines(), printed.strip()))
    return actual


def labelled() -> exports.Samples:
    return exports.samples(3, NAMES, count=6)


def vary(root: Path) -> None:
    """Photographs that differ, in place of those of one colour."""
    for seed, path in enumerate(sorted(root.rglob("*.png"))):
        if path.parent.name not in ("Masks", "SegmentationClass", "masks", "labels") and not path.stem.endswith(
            "_mask"
        ):
            with Image.open(path) as image:
                size = image.size[::-1]
            photo(path, seed, size)


def folders(root: Path, file: str, content: str, suffix: str, colours: list[tuple[int, int, int]]) -> None:
    text(root / file, content)
    for name, regions in labelled().items():
        photo(root / "images" / f"{name}.png", size=SIZE)
        ids = exports.truth(regions, ("background", *NAMES))
        stored(root / "labels" / f"{name}{suffix}.png", np.array(colours, np.uint8)[ids])


def cvat(place: Path) -> None:
    exports.cvat(place / "cvat-export", labelled(), NAMES)
    exports.cvat_masks(place / "cvat-masks", labelled(), NAMES)
    shutil.move(place / "cvat-masks" / "JPEGImages", place / "photos")
    vary(place)
    shutil.make_archive(str(place / "cvat-export"), "zip", place / "cvat-export")


def label_studio(place: Path) -> None:
    exports.label_studio(place / "label-studio", labelled(), NAMES).rename(place / "label-studio" / "project-1.json")


def roboflow(place: Path) -> None:
    exports.roboflow(place / "roboflow", labelled(), NAMES)
    vary(place)
    shutil.make_archive(str(place / "roboflow"), "zip", place / "roboflow")


def binary(place: Path) -> None:
    for name, regions in labelled().items():
        photo(place / "binary" / "images" / f"{name}.png", size=SIZE)
        stored(
            place / "binary" / "masks" / f"{name}.png",
            (exports.truth(regions, ("background", *NAMES)) > 0) * np.uint8(255),
        )


def scans(place: Path) -> None:
    text(place / "scans" / "dataset.yaml", "names: [background, cell]\n")
    for seed, (name, regions) in enumerate(labelled().items()):
        values = np.random.default_rng(seed).integers(0, 4096, SIZE).astype(np.uint16)
        stored(place / "scans" / "images" / f"{name}.tif", values)
        ids = (exports.truth(regions, ("background", *NAMES)) > 0).astype(np.uint8)
        stored(place / "scans" / "masks" / f"{name}.png", ids)


def hugging_face(place: Path) -> None:
    lines = []
    for name, regions in labelled().items():
        photo(place / "hugging-face" / "train" / f"{name}.png", size=SIZE)
        stored(place / "hugging-face" / "train" / f"{name}_mask.png", exports.truth(regions, ("background", *NAMES)))
        lines.append(f'{{"file_name": "{name}.png", "mask_file_name": "{name}_mask.png"}}\n')
    text(place / "hugging-face" / "train" / "metadata.jsonl", "".join(lines))


COLOURS = [(0, 0, 0), (0, 200, 0), (200, 100, 0)]
BY_COLOUR = ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\nleaf,0,200,0\nstem,200,100,0\n", "", COLOURS)
OF_CAMVID = ("label_colors.txt", "0 0 0 background\n0 200 0 leaf\n200 100 0 stem\n", "_L", COLOURS)
DATA = {
    "I have labelled in CVAT": cvat,
    "I have labelled in LabelMe": lambda place: exports.labelme(place / "labelme-folder", labelled(), NAMES),
    "I have labelled in Label Studio": label_studio,
    "I have labelled in Roboflow": roboflow,
    "I have labelled in Supervisely": lambda place: exports.supervisely(place / "supervisely", labelled(), NAMES),
    "I have labels for YOLO": lambda place: exports.yolo(place / "yolo", labelled(), NAMES),
    "I have a COCO JSON": lambda place: exports.coco(place / "coco", labelled(), NAMES),
    "I have folders of images and masks": lambda place: folders(place / "folders", *BY_COLOUR),
    "I have binary masks": binary,
    "I have scientific images": scans,
    "I have a published data set": lambda place: folders(place / "camvid", *OF_CAMVID),
    "I have a data set from Hugging Face": hugging_face,
}
EXAMPLES = [example for example in examples() if example[0] in DATA]


@pytest.mark.parametrize(("title", "commands", "printed"), EXAMPLES)
def test_commands_of_each_tool_print_what_is_shown(
    title: str, commands: list[str], printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    DATA[title](tmp_path)
    vary(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, capfd.readouterr().err
    assert printed and " ".join(printed.split()) in " ".join(capfd.readouterr().err.split())


def test_every_section_has_its_data() -> None:
    assert {title for title, _, _ in examples()} == {*DATA, "From data to a model", "Masks back into a labelling tool"}


def run(command: str, capfd) -> None:
    words = shlex.split(command)[1:]
    if words[:2] == ["train", "finetune"]:
        words += ["--iterations", "2", "-b", "2"]
    assert main(words) == 0, capfd.readouterr().err


@pytest.mark.integration
def test_the_way_from_data_to_a_model_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    cvat(tmp_path)
    monkeypatch.chdir(tmp_path)
    for title, commands, _ in examples():
        if title not in DATA:
            for command in commands:
                run(command, capfd)
    for name in ("check.html", "sheet.png", "found.png", "to-cvat/train.xml", "to-labelme/labels.txt"):
        assert (tmp_path / name).is_file(), name


def test_what_needs_no_model_of_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    cvat(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in (line for title, lines, _ in examples() if title not in DATA for line in lines):
        if not re.search("train finetune|predict|runs/mine|convert found", command):
            run(command, capfd)
    assert (tmp_path / "check.html").is_file() and (
        tmp_path / "to-coco" / "annotations" / "instances_val.json"
    ).is_file()


ROWS = re.findall(r"^\| [^|]+ \| `([\w-]+)` \| ([01]\.\d+) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("layout", "figure"), ROWS)
def test_masks_agree_as_the_table_says(layout: str, figure: str) -> None:
    assert len(ROWS) >= 15
    assert worst_iou(layout) == pytest.approx(float(figure), abs=0.001)
