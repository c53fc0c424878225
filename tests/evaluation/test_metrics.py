"""mIoU and accuracies against NumPy and scikit-learn, and that they come from one confusion matrix."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from atrous.evaluation.metrics import ConfusionMatrix, image_iou

NAMES = ("a", "b", "c", "d", "e")


def random_pair(seed: int, classes: list[int], ignored: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, (2, 17, 23))
    prediction = np.where(rng.random(truth.shape) < 0.6, truth, rng.choice(classes, truth.shape))
    truth[rng.random(truth.shape) < ignored] = 255
    return prediction, truth


def counted(*pairs: tuple[np.ndarray, np.ndarray], classes: int = 5) -> ConfusionMatrix:
    confusion = ConfusionMatrix(classes)
    for prediction, truth in pairs:
        confusion.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    return confusion


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_are_scikit_learns(seed: int) -> None:
    prediction, truth = random_pair(seed, [0, 1, 3, 4])
    valid = truth != 255
    expected = confusion_matrix(truth[valid], prediction[valid], labels=range(5))
    assert (counted((prediction, truth)).counts.numpy() == expected).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_scores_are_numpys_and_scikit_learns(seed: int) -> None:
    prediction, truth = random_pair(seed, list(range(5)))
    scores = counted((prediction, truth)).scores(NAMES)
    p, t = prediction[truth != 255], truth[truth != 255]
    iou = [np.sum((p == k) & (t == k)) / np.sum((p == k) | (t == k)) for k in range(5)]
    recall = [np.mean(p[t == k] == k) for k in range(5)]
    assert scores.iou == pytest.approx(iou, rel=1e-12)
    assert scores.iou == pytest.approx(jaccard_score(t, p, average=None), rel=1e-12)
    assert scores.miou == pytest.approx(np.mean(iou), rel=1e-12)
    assert scores.accuracy == pytest.approx(recall, rel=1e-12)
    assert scores.mean_accuracy == pytest.approx(np.mean(recall), rel=1e-12)
    assert scores.pixel_accuracy == pytest.approx(np.mean(p == t), rel=1e-12)


def test_a_class_in_neither_truth_nor_prediction_is_left_out_and_named() -> None:
    prediction, truth = random_pair(1, [0, 1, 3])
    scores = counted((prediction, truth)).scores(NAMES)
    p, t = prediction[truth != 255], truth[truth != 255]
    assert scores.left_out == ("c", "e")
    assert math.isnan(scores.iou[2])
    assert scores.miou == pytest.approx(jaccard_score(t, p, average="macro", labels=[0, 1, 3]), rel=1e-12)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    scores = counted((np.array([[0, 1], [0, 2]]), np.array([[0, 1], [0, 0]]))).scores(NAMES)
    # a: 2 of 3, b: 1 of 1, c: 0 of 1; d and e are nowhere
    assert scores.miou == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores.left_out == ("d", "e")
    assert scores.mean_accuracy == pytest.approx((2 / 3 + 1) / 2)


def test_what_is_predicted_on_ignored_pixels_does_not_count() -> None:
    scores = counted((np.array([[0, 1, 4]]), np.array([[0, 255, 255]]))).scores(NAMES)
    assert scores.miou == 1.0
    assert scores.left_out == ("b", "c", "d", "e")


def test_the_score_of_a_set_is_from_one_matrix_not_a_mean_over_images() -> None:
    large = (np.array([0] * 9 + [1]), np.array([0] * 10))
    small = (np.array([1]), np.array([1]))
    both = counted(large, small, classes=2).scores("ab").miou
    mean = np.mean([counted(pair, classes=2).scores("ab").miou for pair in (large, small)])
    # a: 9 of 10, b: 1 of 2; image by image the means are (0.9 + 0) / 2 and 1.
    assert both == pytest.approx((0.9 + 0.5) / 2)
    assert mean == pytest.approx((0.45 + 1) / 2)


def test_the_order_and_the_batching_of_images_do_not_matter() -> None:
    pairs = [random_pair(seed, list(range(5))) for seed in range(4)]
    joined = (np.concatenate([p for p, _ in pairs]), np.concatenate([t for _, t in pairs]))
    assert torch.equal(counted(*pairs).counts, counted(joined).counts)
    assert torch.equal(counted(*pairs[::-1]).counts, counted(joined).counts)


def test_uint8_labels_do_not_overflow() -> None:
    ids = np.full((3, 3), 199, dtype=np.uint8)
    assert int(counted((ids, ids), classes=200).counts[199, 199]) == 9


def test_another_ignored_label() -> None:
    confusion = ConfusionMatrix(2, ignore=7)
    confusion.update(torch.tensor([0, 1, 1]), torch.tensor([0, 7, 1]))
    assert confusion.counts.tolist() == [[1, 0], [0, 1]]


def test_nothing_to_count_is_not_a_number_and_null_in_json() -> None:
    scores = counted((np.zeros((2, 2), int), np.full((2, 2), 255))).scores(NAMES)
    assert math.isnan(scores.miou) and math.isnan(scores.pixel_accuracy)
    actual = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert actual["miou"] is None and actual["iou"] == dict.fromkeys(NAMES) and actual["left_out"] == list(NAMES)


def test_json_holds_every_class_by_name() -> None:
    actual = counted(random_pair(0, [0, 1, 2, 3])).scores(NAMES)
    as_dict = json.loads(json.dumps(actual.as_dict(), allow_nan=False))
    assert as_dict["miou"] == actual.miou
    assert list(as_dict["iou"]) == list(NAMES)
    assert as_dict["iou"]["e"] is None
    assert dict(actual) == {key: as_dict[key] for key in ("miou", "mean_accuracy", "pixel_accuracy")}


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([0, 5], [0, 0], "prediction has class 5, expected 0 to 4"),
        ([0, 0], [6, 0], "truth has class 6, expected 0 to 4"),
        ([-1, 3], [0, 0], "prediction has class -1, expected 0 to 4"),
        ([0, 1, 2], [0, 1], r"prediction is \(3,\), the truth \(2,\)"),
    ],
)
def test_ids_out_of_range_and_other_shapes_are_refused(prediction: list, truth: list, message: str) -> None:
    confusion = ConfusionMatrix(5)
    with pytest.raises(ValueError, match=message):
        confusion.update(torch.tensor(prediction), torch.tensor(truth))
    assert confusion.counts.sum() == 0


def test_an_image_has_the_mean_over_what_is_in_it() -> None:
    counts = torch.tensor([[6000, 2000, 0], [0, 2000, 0], [0, 0, 0]])
    assert image_iou(counts) == pytest.approx((6 / 8 + 2 / 4) / 2)
    stray = counts.clone()
    stray[0, 2] = 3  # a few pixels are no object
    assert image_iou(stray) == pytest.approx((6000 / 8003 + 2 / 4) / 2)
    assert image_iou(torch.zeros(2, 2)) != image_iou(torch.zeros(2, 2))  # not a number


def test_an_update_returns_its_own_counts() -> None:
    matrix = ConfusionMatrix(2)
    truth = torch.tensor([[0, 1], [1, 255]])
    for _ in range(2):
        assert matrix.update(torch.tensor([[0, 0], [1, 1]]), truth).tolist() == [[1, 0], [1, 1]]
    assert matrix.counts.tolist() == [[2, 0], [2, 2]]
