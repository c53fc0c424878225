"""`atrous data`: what it prints, where, and with which exit status."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.cli.data import FORMATS
from atrous.cli.parser import main
from atrous.data.convert import WRITERS
from atrous.data.datasets.dataset import open_dataset


def last_line(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def test_the_formats_of_the_help_are_those_that_are_written() -> None:
    assert FORMATS == ("plain", *WRITERS)


def test_check_says_first_what_it_saw(tiny_data: Path, tmp_path: Path, capfd) -> None:
    assert main(["data", "check", str(tiny_data), "--report", str(tmp_path / "check.html")]) == 0
    said = capfd.readouterr()
    assert said.out == ""
    assert " ".join(said.err.split()).startswith(  # the width of the terminal breaks the line
        "a plain folder with the classes of dataset.yaml: 12 images, 12 masks, 4 classes, splits"
    )
    assert "<html" in (tmp_path / "check.html").read_text()
    assert main(["data", "check", str(tiny_data), "--json"]) == 0
    answer = last_line(capfd.readouterr().out)
    assert answer["sound"] and answer["saw"].startswith("a plain folder") and answer["fixes"] == {}


def test_check_refuses_a_report_of_another_kind_before_it_reads(tmp_path: Path, capfd) -> None:
    assert main(["data", "check", str(tmp_path / "nowhere"), "--report", "check.pdf"]) == 2
    assert "suffix '.pdf'; expected .html or .png" in capfd.readouterr().err


def test_show_writes_a_sheet(tiny_data: Path, tmp_path: Path, capfd) -> None:
    out = tmp_path / "sheet.png"
    assert main(["data", "show", str(tiny_data), "--out", str(out), "--count", "3", "--json"]) == 0
    answer = last_line(capfd.readouterr().out)
    assert len(answer["shown"]) == 3 and answer["unreadable"] == [] and Image.open(out).width > 1000
    assert main(["data", "show", str(tiny_data), "--split", "vall", "--out", str(out)]) == 2
    assert "no split 'vall'" in capfd.readouterr().err


def test_show_has_predictions_beside_truth(tiny_data: Path, tmp_path: Path, capfd) -> None:
    """Those of a folder; a missing one is told."""
    masks = tmp_path / "found" / "masks"
    masks.mkdir(parents=True)
    for path in (tiny_data / "masks" / "val").iterdir():
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(masks / path.name)
    (masks / "val0.png").unlink()
    out = tmp_path / "sheet.png"
    options = ["--split", "val", "--predictions", str(tmp_path / "found"), "--out", str(out)]
    assert main(["data", "show", str(tiny_data), *options]) == 0
    said = capfd.readouterr().err
    assert "3 pictures" in said and "val0.png: no such file; expected a predicted mask of" in said
    assert main(["data", "show", str(tiny_data), *options, "--model", "objects-mobilenetv2"]) == 2
    assert "--predictions and --model are both given" in capfd.readouterr().err
    assert main(["data", "show", str(tiny_data), "--model", "objects-mobilenetv2", "--out", str(out)]) == 2
    assert "expected a model of the same classes" in capfd.readouterr().err


def test_convert_tells_what_it_did_and_what_is_next(tiny_data: Path, tmp_path: Path, capfd) -> None:
    out = tmp_path / "out"
    assert main(["data", "convert", str(tiny_data), str(out)]) == 0
    said = capfd.readouterr()
    assert said.out == "" and f"{out}: train 8, val 4; 12 written" in said.err
    assert f"atrous train finetune --data {out}" in said.err
    assert main(["data", "convert", str(tiny_data), str(out), "--json"]) == 0
    answer = last_line(capfd.readouterr().out)
    assert answer["splits"] == {"train": 8, "val": 4} and answer["written"] == 0 and answer["already"] == 12
    assert main(["data", "convert", str(tiny_data), str(out), "--to", "cvat"]) == 2
    assert "expected an empty folder" in capfd.readouterr().err


def test_convert_that_wrote_nothing_names_no_next_step(tmp_path: Path, capfd) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.new("L", (8, 8 if folder == "images" else 4)).save(tmp_path / "data" / folder / "a.png")
    names = ["--names", "background,leaf"]
    assert main(["data", "convert", str(tmp_path / "data"), str(tmp_path / "out"), *names]) == 2
    said = capfd.readouterr().err
    assert "0 written, 1 could not be read" in said and "next:" not in said


def test_what_a_model_finds_becomes_annotations(tmp_path: Path, capfd) -> None:
    from importlib import resources

    (tmp_path / "photos").mkdir()
    photograph = resources.files("atrous") / "prediction" / "assets" / "cow.jpg"
    (tmp_path / "photos" / "cow.jpg").write_bytes(photograph.read_bytes())
    photos, predicted, out = (str(tmp_path / name) for name in ("photos", "found", "out"))
    assert main(["predict", photos, "--out", predicted]) == 0
    assert main(["data", "convert", predicted, out, "--to", "voc"]) == 2
    assert "holds masks without their photographs; expected --images FOLDER" in capfd.readouterr().err
    assert main(["data", "convert", predicted, out, "--images", photos, "--to", "voc"]) == 0
    direct = ["data", "convert", photos, f"{out}2", "--model", "objects-mobilenetv2", "--to", "cvat"]
    assert main(direct) == 0
    dataset = open_dataset(out, "train")
    predicted = np.asarray(Image.open(tmp_path / "found" / "masks" / "cow.png"))
    assert "cow" in dataset.labels.names and (dataset[0].mask.numpy() == predicted).all()
    assert (open_dataset(f"{out}2", "train")[0].mask.numpy() == predicted).all()


@pytest.mark.parametrize("command", ["check", "show", "convert"])
def test_help_answers_with_an_example(command: str, capfd) -> None:
    with pytest.raises(SystemExit):
        main(["data", command, "--help"])
    assert f"example:\n  atrous data {command}" in capfd.readouterr().out
