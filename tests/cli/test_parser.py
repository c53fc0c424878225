"""The command line end to end, and one line for whatever a user can get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atrous.cli.parser import main
from atrous.models.weights import names
from atrous.prediction import demo
from atrous.training.config import Recipe, override
from forks import Forked

Draw = Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]
CPU = ["--device", "cpu"]


def said(capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    out, err = capsys.readouterr()
    return out, err.splitlines()


def json_of(out: str) -> Any:
    (line,) = out.splitlines()
    return json.loads(line)


def opened(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


def status_of(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


@pytest.fixture
def photo(tmp_path: Path, drawn: Draw) -> Path:
    path = tmp_path / "photos" / "street [1].jpg"
    path.parent.mkdir()
    Image.fromarray(drawn(0, 45, 61)[0]).save(path, quality=95)
    return path


def test_train_then_evaluate_then_predict(
    tiny: Recipe, tiny_data: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run, out = tmp_path / "mine.yaml", tmp_path / "run", tmp_path / "out"
    recipe.write_text(tiny.to_yaml())
    flags = ["--iterations", "2", "-b", "2", "--lr", "0.001", "-j", "0", "--set", "flip=0", "--json", *CPU]
    assert main(["train", str(recipe), "--data", f"folder:{tiny_data}", "--out", str(run), *flags]) == 0
    printed, lines = said(capsys)
    trained = json_of(printed)
    assert trained["run"] == str(run) and 0 <= trained["miou"] <= 1
    assert any("2 steps of 2" in line for line in lines)

    assert main(["eval", str(run), "--data", str(tiny_data), "--json", *CPU]) == 0
    scores = json_of(said(capsys)[0])
    assert scores["miou"] == pytest.approx(trained["miou"], abs=0.02)
    assert set(scores["iou"]) == {"ground", "red", "green", "blue"}
    assert scores["images"] == 4 and scores["seconds"] > 0 and 0 <= scores["pixel_accuracy"] <= 1
    options = ["--split", "train", "--output-stride", "8", "--scales", "0.5", "1", "--flip"]
    assert main(["eval", str(run / "best"), "--data", str(tiny_data), *options, "--json", *CPU]) == 0
    actual = json_of(said(capsys)[0])
    assert (actual["images"], actual["output_stride"], actual["scales"], actual["flip"]) == (8, 8, [0.5, 1.0], True)
    assert main(["eval", str(run), "--data", str(tiny_data), "--pad-to", "97", "--json", *CPU]) == 0
    assert json_of(said(capsys)[0])["pad_to"] == 97

    weights = run / "best" / "model.safetensors"
    assert main(["predict", str(weights), str(photo.parent), "--out", str(out), "--json", *CPU]) == 0
    areas = json_of(said(capsys)[0])["files"][str(photo)]
    mask = np.asarray(opened(out / "masks" / "street [1].png"))
    assert mask.shape == (45, 61) and opened(out / "overlays" / "street [1].png").size == (61, 45)
    assert sum(areas.values()) == pytest.approx(1)
    kinds = ["ground", "red", "green", "blue"]
    assert areas == {name: pytest.approx(np.mean(mask == kinds.index(name))) for name in areas}

    assert main(["data", "check", str(tiny_data), "--json"]) == 0
    assert "splits" in json_of(said(capsys)[0])


def test_eval_compares_the_names_of_the_classes(
    trained: Path, make_data: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data(tmp_path / "data", {"val": 1})
    text = (data / "dataset.yaml").read_text().replace("- red\n- green\n", "- green\n- red\n")
    (data / "dataset.yaml").write_text(text)
    line = ["eval", str(trained), "--data", str(data), "--json", *CPU]
    assert main(line) == 2 and main([*line, "--ladder"]) == 2
    _, lines = said(capsys)
    assert "first difference is class 1, green in the data and red in the model" in lines[-1]
    assert lines[-1].endswith("or --ignore-class-names")
    assert main([*line, "--ignore-class-names"]) == 0
    assert "miou" in json_of(said(capsys)[0])


def test_tables_are_for_people_and_go_to_standard_error(
    trained: Path, tiny_data: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(trained), "--data", str(tiny_data), *CPU]) == 0
    out, lines = said(capsys)
    assert out == "" and any("ground" in line for line in lines) and any("mean" in line for line in lines)
    assert main(["predict", str(trained), str(photo), "--out", str(tmp_path / "out"), *CPU]) == 0
    out, lines = said(capsys)
    assert out == "" and any("1 of 1 segmented" in line for line in lines)
    assert any("%" in line for line in lines)
    assert main(["data", "check", str(tiny_data)]) == 0
    out, lines = said(capsys)
    assert out == "" and lines


def test_names_with_brackets_and_colons_are_printed_as_they_are(
    trained: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a["
    folder.mkdir()
    photo.rename(folder / "b]:car:.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["predict", str(trained), "a[/b]:car:.jpg", "--out", "out", *CPU]) == 0
    assert any("a[/b]:car:.jpg" in line for line in said(capsys)[1])


def test_models_lists_what_the_package_carries(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from atrous.models import weights

    monkeypatch.setattr(weights, "_zoo", lambda: {"shapes-tiny": trained / "best" / "model.safetensors"})
    assert weights.speeds() != ("", {}), "the package carries the milliseconds of its own weights"
    monkeypatch.setattr(weights, "_folder", lambda: tmp_path)
    assert weights.speeds() == ("", {})
    speed = {"hardware": "two cores", "size": [36, 48], "milliseconds": {"shapes-tiny": {"val": 12.5}}}
    (tmp_path / "speed.json").write_text(json.dumps(speed))
    assert main(["models", "--json"]) == 0
    row = json_of(said(capsys)[0])["shapes-tiny"]
    assert row["classes"] == ["ground", "red", "green", "blue"] and 0 < row["megabytes"] < 10
    assert 0 <= row["metrics"]["val"]["miou"] <= 1 and "licence" in row and row["longest_side"] is None
    assert row["metrics"]["val"]["milliseconds"] == 12.5
    assert main(["models"]) == 0
    told = " ".join(said(capsys)[1])
    assert "shapes-tiny" in told and "12.5" in told and "two cores, 36×48 pixels" in told


def test_the_shipped_weights_are_listed_with_miou_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    row = json_of(said(capsys)[0])["camvid-efficientnet_lite0"]
    assert len(row["classes"]) == 11 and row["licence"] and row["megabytes"] <= 15
    assert max(actual["miou"] for actual in row["metrics"].values()) >= 0.6


def test_every_time_of_the_shipped_weights_is_that_of_a_metric_in_its_card() -> None:
    from atrous.models.weights import cards, speeds

    for name, took in speeds()[1].items():
        assert took and took.keys() <= cards()[name][1].metrics.keys()


def test_the_cards_of_the_shipped_weights_tell_no_place_of_the_machine_that_made_them() -> None:
    from atrous.models.weights import cards

    for name, (path, card) in cards().items():
        started = card.recipe["weights"]
        assert started == "imagenet" or started.startswith("runs/") or Path(started).name == started, name
        assert path.stat().st_size <= 15e6 and card.longest_side in (640, 840, 960)
        assert card.recipe["backbone"] == card.arguments["backbone"]
        assert name.partition("-")[2] in card.arguments["backbone"]


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--json", *CPU]) == 0
    results = json_of(said(capsys)[0])["results"]
    for result in results:
        overlay, mask = opened(result["overlay"]), opened(result["mask"])
        assert overlay.size == mask.size and min(mask.size) > 100
        assert result["model"] in names()
        assert sum(result["areas"].values()) == pytest.approx(1)
    monkeypatch.setattr(demo, "SCENES", demo.SCENES[:2])
    assert main(["demo", "--out", str(tmp_path / "out"), *CPU]) == 0
    assert said(capsys)[0].split() == [result["overlay"] for result in results[:2]] and len(results) == 4
    shares = {result["photograph"]: result["areas"] for result in results}
    assert shares["cow.jpg"]["cow"] > 0.15 and shares["aeroplane.jpg"]["aeroplane"] > 0.08
    assert shares["terrace.jpg"]["chair"] > 0.3 and shares["terrace.jpg"]["diningtable"] > 0.05
    assert len(shares["pavilion.jpg"]) > 2


def test_one_bad_file_is_named_at_the_end_and_the_others_are_done(
    trained: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photo.with_name("bad.png")
    bad.write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(["predict", str(trained), str(photo.parent), "--out", str(out), "--json", *CPU]) == 2
    printed, lines = said(capsys)
    actual = json_of(printed)
    assert list(actual["files"]) == [str(photo)] and list(actual["failures"]) == [str(bad)]
    assert lines[-1].startswith("atrous: error: ") and "bad.png" in lines[-1]
    assert [path.name for path in (out / "masks").iterdir()] == ["street [1].png"]


@pytest.fixture
def place(
    tmp_path: Path, trained: Path, tiny: Recipe, tiny_data: Path, make_data: Any, drawn: Draw, monkeypatch: Any
) -> Path:
    """A folder with everything that a user can get wrong."""
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(trained)
    Path("data").symlink_to(tiny_data)
    Path("empty").mkdir()
    Path("file").write_text("a file")
    image, mask = drawn(0, 40, 50)
    Image.fromarray(image).save("photo.png")
    whole = Path("photo.png").read_bytes()
    Path("half.png").write_bytes(whole[: len(whole) // 2])
    Path("tiny.yaml").write_text(override(tiny, {"val_split": None}).to_yaml())
    Path("typo.yaml").write_text("base: voc-resnet101\niteratons: 5\n")
    Path("broken.yaml").write_text("a: [")
    Path("foreign.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    Path("pickle.pth").write_bytes(b"\x80\x04K\x01.")
    for name in ("range", "size", "unreadable", "lonely", "classes"):
        make_data(Path(name), {"train": 1, "val": 1})
    for split in ("train", "val"):
        mask[3, 3] = 99
        Image.fromarray(mask).resize((48, 40), 0).save(f"range/masks/{split}/{split}0.png")
        Image.fromarray(mask[:20] * 0).save(f"size/masks/{split}/{split}0.png")
        Path(f"unreadable/images/{split}/{split}0.png").write_bytes(whole[:60])
        Path(f"lonely/masks/{split}/{split}0.png").unlink()
    Path("classes/dataset.yaml").write_text("names: [a, b, c, d, e]\n")
    return tmp_path


TRAIN = ["train", "tiny.yaml", "--out", "new", *CPU]
PREDICT = ["predict", "run", "photo.png", "--out", "out", *CPU]
EVAL = ["eval", "run", "--data", "data", *CPU]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "a missing photo": (["predict", "run", "nowhere.jpg", "--out", "out"], "no file or folder 'nowhere.jpg'"),
    "an unreadable photo": (["predict", "run", "half.png", "--out", "out", *CPU], "half.png: "),
    "a text for a photo": (["predict", "run", "file", "--out", "out", *CPU], "file: not an image of a known format"),
    "an empty folder": (["predict", "run", "empty", "--out", "out"], "'empty' holds no photograph"),
    "an empty glob": (["predict", "run", "*.webp", "--out", "out"], "'*.webp' holds no photograph"),
    "a key given twice": (
        [*TRAIN, "--data", "data", "--iterations", "6", "--set", "iterations=12"],
        "iterations is given twice, by --iterations and by --set",
    ),
    "a scale of none": ([*PREDICT, "--scales", "0"], "scales are (0.0,), expected numbers from 0.05 to 16.0"),
    "a scale that is a word": ([*PREDICT, "--scales", "big"], "'big'"),
    "a stride of none": ([*PREDICT, "--output-stride", "12"], "output_stride is 12, expected one of 4, 8, 16"),
    "a stride too far": ([*EVAL, "--output-stride", "256"], "256"),
    "a file for a folder to write": (["predict", "run", "photo.png", "--out", "file", *CPU], "file"),
    "no such device": ([*PREDICT, "--device", "tpu0"], "no device 'tpu0'; expected cpu, cuda, cuda:NUMBER or mps"),
    "no such weights": (["predict", "camvid-lite", "photo.png", "--out", "out"], "no model 'camvid-lite'"),
    "a folder without weights": (["eval", "empty", "--data", "data"], "empty holds neither model.safetensors nor"),
    "a foreign weight file": (["eval", "foreign.safetensors", "--data", "data"], "foreign.safetensors holds no"),
    "a pickle": (["eval", "pickle.pth", "--data", "data"], "pickle.pth cannot be read as a checkpoint"),
    "weights for other classes": (
        ["eval", "run", "--data", "classes", *CPU],
        "the data has the 5 classes a, b, c, d, e",
    ),
    "weights to start from for other classes": (
        [
            "train",
            "tiny.yaml",
            "--out",
            "new",
            "--data",
            "classes",
            "--weights",
            "run",
            "--set",
            "allow_empty_classes=true",
            *CPU,
        ],
        "has 4 classes, expected 5",
    ),
    "no such data": (["eval", "run", "--data", "nowhere", *CPU], "nowhere: no such folder"),
    "no such kind of data": (["eval", "run", "--data", "coco9:data", *CPU], "unknown kind of data set 'coco9'"),
    "no such split": ([*EVAL, "--split", "test"], "no split 'test'; the splits there are train, val"),
    "a layout of none": (["eval", "run", "--data", "empty", *CPU], "empty: layout not recognised"),
    "an id out of range": (["eval", "run", "--data", "range", *CPU], "val0.png: mask has id 99 (1 pixels); expected"),
    "an id out of range in training": ([*TRAIN, "--data", "range", "-j", "0"], "train0.png: mask has id 99"),
    "an id out of range in a loader": ([*TRAIN, "--data", "range", "-j", "1"], "train0.png: mask has id 99"),
    "sizes that differ": (["eval", "run", "--data", "size", *CPU], "val0.png: mask of 50x20; expected 48x40, the size"),
    "an unreadable image": (["eval", "run", "--data", "unreadable", *CPU], "val0.png: "),
    "an image without a mask": ([*TRAIN, "--data", "lonely"], "1 of 1 images have no mask"),
    "no such recipe": (["train", "camvid-efficientnet", "--data", "data"], "did you mean camvid-efficientnet_lite"),
    "a typo in a key": (
        ["train", "typo.yaml", "--data", "data"],
        "typo.yaml: a recipe has no key 'iteratons'; did you",
    ),
    "a recipe that is no YAML": (["train", "broken.yaml", "--data", "data"], "broken.yaml is not YAML"),
    "a typo in --set": ([*TRAIN, "--data", "data", "--set", "crp=3"], "no key 'crp'; did you mean crop?"),
    "--set without a value": ([*TRAIN, "--data", "data", "--set", "crop"], "--set takes KEY=VALUE, found 'crop'"),
    "a value out of range": ([*TRAIN, "--data", "data", "--batch-size", "0"], "batch_size is 0, expected at least 1"),
    "a rate of none": ([*TRAIN, "--data", "data", "--lr", "nan"], "lr is nan, expected a number"),
    "a batch that cannot be cut": (
        [*TRAIN, "--data", "data", "--grad-accum-steps", "3"],
        "a multiple of grad_accum_steps, 3",
    ),
    "fewer workers than none": ([*TRAIN, "--data", "data", "-j", "-1"], "--workers is -1, expected at least 0"),
    "a run that is there": (["train", "tiny.yaml", "--out", "run", "--data", "data"], "run holds a run at step 30"),
    "a file for a run": (["train", "tiny.yaml", "--out", "file", "--data", "data", *CPU], "file"),
    "an unknown flag": ([*EVAL, "--flips"], "unrecognized arguments: --flips; did you mean --flip?"),
    "an unknown flag of train": ([*TRAIN, "--data", "data", "--iteration", "5"], "did you mean --iterations?"),
    "another tool's flag": (["train", "--config", "tiny.yaml"], "--config; here: the recipe is the first word"),
    "another tool's flag for the model": (["predict", "--model=run"], "here: the model is given without a flag"),
    "a flag of another command": ([*EVAL, "--batch-size", "4"], "here: training alone has one"),
    "an abbreviated flag": ([*EVAL, "--fli"], "--fli"),
    "an unknown command": (["segment"], "'segment'"),
    "no data": (["eval", "run"], "--data"),
    "a check of nothing": (["data", "check", "nowhere"], "nowhere: no such folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_status_2_and_one_line_that_names_it(
    mistake: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = MISTAKES[mistake]
    before = {path for path in place.rglob("*")}
    assert status_of(arguments) == 2
    out, lines = said(capsys)
    assert out == ""
    trained = "new" in arguments and any(line.startswith("timm/") for line in lines)
    errors = lines[1:] if trained else lines  # a run that had started has said so
    assert len(errors) == 1, lines
    assert message in errors[0] and "error: " in errors[0] and "Traceback" not in errors[0]
    left = {path for path in place.rglob("*")} - before
    assert not [path for path in left if path.suffix in {".png", ".safetensors", ".partial", ".tmp"}]


def test_a_failure_is_status_1(
    tiny_data: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from atrous.training.state import State

    def diverged(*_: Any) -> float:
        raise FloatingPointError("the loss is nan at step 0")

    monkeypatch.setattr(State, "take_step", diverged)
    assert main([*TRAIN, "--data", "data", "-j", "0"]) == 1
    assert said(capsys)[1][-1] == "atrous: error: the loss is nan at step 0"


@pytest.mark.integration
def test_what_the_command_has_made_is_not_looked_through_at_its_end() -> None:
    code = (
        "import atexit, gc, sys; from atrous.cli.parser import main; sys.argv = ['atrous', 'models']; "
        "atexit.register(lambda: print('frozen', gc.get_freeze_count())); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split("frozen ")[1]) > 0


@pytest.mark.integration
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_standard_output_that_is_full_is_named() -> None:
    command = [sys.executable, "-m", "atrous", "models", "--json"]
    environment = {key: value for key, value in os.environ.items() if key not in ("ATROUS_DEBUG", "PYTHONUNBUFFERED")}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.returncode, done.stderr) == (1, "atrous: error: standard output: No space left on device\n")


def test_output_that_cannot_be_written_is_named(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "x")
    assert main(["predict", names()[0], str(photo), "--out", place, *CPU]) == 2
    assert said(capsys)[1] == [f"atrous: error: {tmp_path / 'file'} is a file, expected a folder to write into"]


def test_interrupted_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from atrous.models import weights

    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "cards", interrupted)
    assert main(["models"]) == 130
    assert said(capsys)[1] == ["atrous: interrupted"]


def test_what_nobody_foresaw_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from atrous.models import weights

    def broken() -> Any:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(weights, "cards", broken)
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_debug_shows_the_traceback_of_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATROUS_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["data", "check", "nowhere"])


@pytest.mark.integration
def test_a_process_of_its_own(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ATROUS_DEBUG"}
    command = [sys.executable, "-m", "atrous", "data", "check", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith("atrous: error: ") and "nowhere" in done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from atrous import __version__

    assert status_of(["--version"]) == 0
    assert said(capsys)[0] == f"atrous {__version__}\n"


def test_a_command_that_is_none_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["modles"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.strip().endswith("; did you mean models?")


def test_a_run_folder_that_is_a_file_is_refused(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("mine")
    line = ["train", "folder-efficientnet_lite0", "--data", str(tiny_data), "--out", str(tmp_path / "run"), *CPU]
    assert main(line) == 2
    assert "is a file, expected a folder to write a run into" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "mine"


def test_no_words_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: atrous" in said(capsys)[0]


def test_predict_without_a_model_takes_the_everyday_one_and_says_so(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(photo), *CPU]) == 0
    assert any("objects-mobilenetv2" in line for line in said(capsys)[1])
    with Image.open(photo) as image, Image.open(tmp_path / "atrous-out" / "masks" / "street [1].png") as mask:
        assert mask.size == image.size
    assert main(["predict", "photos/*.jpg", "--out", "other", *CPU]) == 0
    assert (tmp_path / "other" / "masks" / "street [1].png").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["objects-mobilenetv2"], "is a model; expected photographs after it"),
        (["objects-mobilnetv2", "."], "did you mean objects-mobilenetv2"),
        (["nothing.jpg"], "no photograph and no model 'nothing.jpg'"),
        (["nothing.safetensors", "."], "no weight file"),
        (["photos/street.jgp"], "did you mean photos/street [1].jpg?"),
    ],
)
def test_predict_tells_a_model_from_a_photograph(
    words: list[str],
    expected: str,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of(["predict", *words]) == 2
    (line,) = said(capsys)[1]
    assert expected in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["predict", "--model", "x", "y"], "MODEL PHOTOGRAPHS"),
        (["train", "finetune", "--data", "x", "--epochs", "3"], "--iterations"),
        (["train", "finetune", "--data", "x", "--learning-rate", "3"], "--lr"),
        (["predict", "x", "--output-strid", "8"], "did you mean --output-stride?"),
        (["predic", "x"], "did you mean predict?"),
        (["train", "finetune", "--data", "x", "--batch", "3"], "--batch-size"),
    ],
)
def test_a_flag_of_another_tool_leads_to_ours(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(words) == 2
    (line,) = said(capsys)[1]
    assert expected in line


def test_nothing_is_suggested_that_is_not_near(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["predict", "x", "--zzz", "8"]) == 2
    assert "did you mean" not in said(capsys)[1][0]


def test_recipes_and_one_model_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from atrous.training.recipes import RECIPES

    assert status_of(["train", "--list"]) == 0
    told = " ".join(said(capsys)[1])
    assert all(name in told for name in RECIPES)
    assert main(["models", "objects-mobilenetv2"]) == 0
    told = " ".join(said(capsys)[1])
    assert "8 cat" in told and "non-commercial" in told
    assert main(["models", "objects-mobilenetv2", "--json"]) == 0
    assert json_of(said(capsys)[0])["classes"][8] == "cat"
    assert main(["models", "objects"]) == 2
    assert "there is no model 'objects'" in said(capsys)[1][0]


@pytest.mark.integration
def test_streams_that_the_caller_closed_cost_nothing(photo: Path, tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m atrous predict "{photo}" --out out --device cpu >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "out" / "masks" / "street [1].png").is_file()


@pytest.mark.integration
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_one_stream_that_the_caller_closed_costs_nothing(closed: str, photo: Path, tmp_path: Path) -> None:
    line = ["predict", str(photo), "--out", str(tmp_path / "out"), *CPU]
    process = Forked(line, tmp_path / "said", [("close_stream", closed)])
    assert process.status() == 0, process.output
    assert (tmp_path / "out" / "masks" / "street [1].png").is_file()


@pytest.mark.integration
def test_json_to_a_stream_that_is_closed_is_a_failure_in_one_line(tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m atrous models --json >&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "standard output is closed" in line


@pytest.mark.integration
def test_a_warning_is_one_line(photo: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep.tif"
    Image.fromarray((np.arange(64 * 64).reshape(64, 64) % 4096).astype(np.uint16)).save(deep)
    process = Forked(["predict", str(deep), "--out", str(tmp_path / "out"), *CPU], tmp_path / "said")
    assert process.status() == 0, process.output
    assert "UserWarning" not in process.output
    (line,) = [line for line in process.output.splitlines() if line.startswith("atrous: warning: ")]
    assert "deep.tif" in line


def test_no_memory_is_a_failure_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from atrous.models import weights

    def exhausted() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(weights, "cards", exhausted)
    assert main(["models"]) == 1
    assert said(capsys)[1] == ["atrous: error: CUDA out of memory. Tried to allocate 2.00 GiB."]
