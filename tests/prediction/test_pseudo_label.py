"""Pseudo-labels: what is written trains, what the teacher is not sure of is ignored, a second call does the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.datasets.dataset import open_dataset
from atrous.data.datasets.folding import load_labels
from atrous.data.labels import Labels, write_labels
from atrous.prediction.predictor import Predictor
from atrous.prediction.pseudo_label import classes_of, label
from atrous.prediction.tflite_teacher import TFLiteTeacher, _starts, open_teacher

LABELS = Labels(("ground", "thing"), ((0, 0, 0), (255, 0, 0)), 255)


class Half:
    """Sure of "thing" where a photograph is bright, of "ground" where it is dark, of neither between."""

    labels = LABELS

    def __init__(self) -> None:
        self.seen: list[str] = []

    def probabilities(self, source: Path) -> np.ndarray:
        self.seen.append(source.name)
        if source.stem == "bad":
            raise ValueError(f"{source}: broken")
        bright = np.asarray(Image.open(source).convert("L"), dtype=np.float32) / 255
        return np.stack([1 - bright, bright])


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    ramp = np.tile(np.array([0, 90, 165, 255], dtype=np.uint8), (3, 1))
    for name in ("a.png", "b.gif"):
        Image.fromarray(ramp).save(folder / name)
    return folder


def test_pseudo_labels_are_a_split(photographs: Path, tmp_path: Path) -> None:
    done = label(Half(), [photographs], tmp_path / "data", confidence=0.6)
    assert (done.written, done.already, done.failures) == (2, 0, {})
    dataset = open_dataset(tmp_path / "data", "pseudo")
    assert dataset.labels == LABELS and dataset.names == ["a", "b"]
    # 90/255 and 165/255 are 0.65 and 0.65 for the one and the other.
    for sample in dataset:
        assert sample.mask.tolist() == [[0, 0, 1, 1]] * 3
    assert done.shares == {"ground": 0.5, "thing": 0.5} and done.ignored == 0
    stricter = label(Half(), [photographs], tmp_path / "data", split="strict", confidence=0.7)
    assert open_dataset(tmp_path / "data", "strict")[0].mask.tolist() == [[0, 255, 255, 1]] * 3
    assert stricter.ignored == 0.5


def test_a_second_call_does_the_rest(photographs: Path, tmp_path: Path) -> None:
    teacher = Half()
    label(teacher, [photographs / "a.png"], tmp_path / "data")
    done = label(teacher, [photographs], tmp_path / "data")
    assert (done.written, done.already) == (1, 1)
    assert teacher.seen == ["a.png", "b.gif"]


def test_a_file_that_fails_is_named_and_the_others_done(photographs: Path, tmp_path: Path) -> None:
    shutil.copy(photographs / "a.png", photographs / "bad.png")
    done = label(Half(), [photographs], tmp_path / "data")
    assert done.written == 2 and list(done.failures) == [photographs / "bad.png"]
    assert open_dataset(tmp_path / "data", "pseudo").names == ["a", "b"]


def test_a_long_file_name_does_not_end_the_labelling(photographs: Path, tmp_path: Path) -> None:
    for stem in ("m" * 230, "n" * 251):
        shutil.copy(photographs / "a.png", photographs / f"{stem}.png")
    result = label(Half(), [photographs], tmp_path / "data")
    assert result.written == 4 and not result.failures
    assert len(open_dataset(tmp_path / "data", "pseudo").names) == 4
    assert label(Half(), [photographs], tmp_path / "data").already == 4


def test_other_classes_are_refused(photographs: Path, tmp_path: Path, trained: Path) -> None:
    (tmp_path / "data").mkdir()
    write_labels(tmp_path / "data" / "dataset.yaml", Labels(("one", "two"), ((0, 0, 0), (1, 1, 1)), 255))
    with pytest.raises(ValueError, match="2 classes one, two; the model has the 2 classes ground, thing; the first"):
        label(Half(), [photographs], tmp_path / "data")
    with pytest.raises(ValueError, match="data has the 2 classes ground, thing; the model has the 4 classes"):
        open_teacher(trained, labels=LABELS)
    with pytest.raises(ValueError, match="confidence is 60"):
        label(Half(), [photographs], tmp_path / "new", confidence=60)
    with pytest.raises(ValueError, match="name of a folder"):
        label(Half(), [photographs], tmp_path / "new", split="../out")
    assert not (tmp_path / "new").exists()


def test_a_run_teaches(trained: Path, tiny_data: Path, tmp_path: Path) -> None:
    done = label(open_teacher(trained), [tiny_data / "images" / "val"], tmp_path / "data", confidence=0.0)
    assert done.written == 4 and done.ignored == 0
    predictor = Predictor.load(trained, device="cpu")
    for sample in open_dataset(tmp_path / "data", "pseudo"):
        np.testing.assert_array_equal(sample.mask, predictor(tiny_data / "images" / "val" / f"{sample.name}.png").mask)


def test_labels_survive_their_file(tmp_path: Path) -> None:
    odd = Labels(("a: b", "naïve", "no", "null"), ((0, 0, 0), (1, 2, 3), (4, 5, 6), (7, 8, 9)), 254)
    write_labels(tmp_path / "dataset.yaml", odd)
    assert load_labels(tmp_path / "dataset.yaml") == odd


@pytest.mark.parametrize(("length", "side"), [(5, 5), (6, 5), (10, 5), (11, 5), (770, 513), (3, 5)])
def test_windows_cover_a_length(length: int, side: int) -> None:
    starts = list(_starts(length, side))
    covered = {i for start in starts for i in range(start, min(start + side, length))}
    assert covered == set(range(length)) and starts == sorted(set(starts))
    assert starts[-1] == max(0, length - side)


GRAPH = Path(__file__).parents[3] / "shared" / "models" / "deeplabv3_mnv2_pascal_quant.tflite"


def test_a_tflite_graph_teaches_a_train() -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    if not GRAPH.is_file():
        pytest.skip(f"no TF-Lite graph at {GRAPH}")
    from atrous.data.labels import VOC

    teacher = TFLiteTeacher(GRAPH, VOC)
    photograph = GRAPH.parents[1] / "photos" / "train.jpg"
    actual = teacher.probabilities(photograph)
    with Image.open(photograph) as image:
        assert actual.shape == (21, image.height, image.width)
    np.testing.assert_allclose(actual.sum(0), 1, atol=1e-4)
    names = {VOC.names[i] for i in np.flatnonzero(np.bincount(actual.argmax(0).reshape(-1), minlength=21) > 1000)}
    assert "train" in names
    with pytest.raises(ValueError, match="no layer has 2 channels"):
        TFLiteTeacher(GRAPH, LABELS)


def test_a_graph_without_names_or_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_bytes(b"not a graph at all")
    with pytest.raises(ValueError, match="holds no class names"):
        open_teacher(tmp_path / "x.tflite")
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_teacher(tmp_path / "y.tflite", labels=LABELS)
    with pytest.raises(ValueError, match="cannot be read as a TF-Lite graph|need ai-edge-litert"):
        open_teacher(tmp_path / "x.tflite", labels=LABELS)


def test_a_split_that_people_labelled_is_left_alone(photographs: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    write_labels(data / "dataset.yaml", LABELS)
    before = sorted((data / "masks" / "train").iterdir())
    with pytest.raises(ValueError, match=r"masks that no teacher made; expected another --split than train"):
        label(Half(), [photographs], data, split="train")
    assert sorted((data / "masks" / "train").iterdir()) == before


def test_a_data_set_that_maps_stored_ids_takes_no_teachers_masks(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("names: [background, leaf]\nmap: {255: 1}\n")
    with pytest.raises(ValueError, match=r"dataset\.yaml: it maps stored ids, but a teacher's masks hold class ids"):
        classes_of(tmp_path)
