"""Masks of 16 bits, for more than 255 classes, from the data set to the metrics and back into a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atrous.data.checks.validate import check
from atrous.data.datasets.dataset import open_dataset
from atrous.data.datasets.mask_values import class_counts
from atrous.data.datasets.options import DatasetOptions
from atrous.data.images.image_io import read_mask, write_mask, write_mask_strips
from atrous.data.labels import Labels, ignored_id, voc_palette
from atrous.data.overlay import overlay
from atrous.data.sampling import id_histograms
from atrous.data.transforms import Augment, class_mix
from atrous.evaluation.evaluate import evaluate, predict_classes, predict_probabilities
from atrous.evaluation.metrics import ConfusionMatrix
from atrous.models import weights
from atrous.models.deeplab import DeepLabV3
from atrous.ops.tta import View, mean_argmax
from atrous.ops.upsampled_loss import upsampled_argmax, upsampled_cross_entropy_sum
from atrous.prediction.files import predict_files
from atrous.prediction.predictor import Predictor

COUNT = 1000
LABELS = Labels(tuple(f"class {index}" for index in range(COUNT)), voc_palette(COUNT), ignored_id(COUNT))


def put(root: Path) -> np.ndarray:
    """A data set of a thousand classes; the masks that it should give."""
    draws = np.random.default_rng(0)
    masks = draws.integers(0, COUNT, (2, 40, 50)).astype(np.uint16)
    masks[:, :2] = 65535
    for index, mask in enumerate(masks):
        for folder in ("images", "masks"):
            (root / folder / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(root / f"images/train/{index}.png")
        if index:
            np.save(root / "masks/train/1.npy", mask.astype(np.int64))
            Image.fromarray(mask).save(root / "masks/train/1.png")
            (root / "masks/train/1.npy").unlink()
        else:
            Image.fromarray(mask).save(root / "masks/train/0.png")
    (root / "dataset.yaml").write_text("names: [" + ", ".join(LABELS.names) + "]")
    return masks


def test_masks_of_a_thousand_classes_are_read_and_counted(tmp_path: Path) -> None:
    masks = put(tmp_path)
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset.labels) == COUNT and dataset.labels.ignore == 65535
    for (_, _, mask), expected in zip(dataset, masks, strict=True):
        assert mask.dtype == torch.int32 and np.array_equal(mask.numpy(), expected)
    histograms = id_histograms(dataset)
    assert histograms.shape == (2, COUNT + 1)
    counts = class_counts(histograms, dataset.labels)
    assert counts.ignored == 200 and counts.pixels.tolist() == np.bincount(masks.ravel())[:COUNT].tolist()
    assert "no pixel of" in check(tmp_path).problems[0]
    few = open_dataset(tmp_path, "train", DatasetOptions.parse({"classes": ["class 999", "class 3"]}))
    assert few[0].mask.dtype == torch.uint8 and few.labels.names == ("background", "class 999", "class 3")
    expected = np.select([masks[0] == 999, masks[0] == 3, masks[0] == 65535], [1, 2, 255], 0)
    assert np.array_equal(few[0].mask.numpy(), expected)


def test_ids_that_are_no_class_are_named(tmp_path: Path) -> None:
    masks = put(tmp_path)
    masks[0, 5, 5] = 40_000
    Image.fromarray(masks[0]).save(tmp_path / "masks/train/0.png")
    with pytest.raises(ValueError, match=r"0.png: mask has id 40000 \(1 pixels\); expected 0..999 or 65535, ignored"):
        open_dataset(tmp_path, "train")[0]
    with pytest.raises(ValueError, match=r"id 65535 .*; expected ids in 0..255"):
        read_mask(tmp_path / "masks/train/0.png")
    (tmp_path / "dataset.yaml").write_text("names: [" + ", ".join(f"c{i}" for i in range(5000)) + "]")
    with pytest.raises(ValueError, match="names has 5000 classes; expected 1 to 4096"):
        open_dataset(tmp_path, "train")


def test_arrays_are_masks(tmp_path: Path) -> None:
    mask = np.arange(12, dtype=np.int64).reshape(3, 4)
    np.save(tmp_path / "a.npy", mask)
    assert np.array_equal(read_mask(tmp_path / "a.npy"), mask) and read_mask(tmp_path / "a.npy").dtype == np.uint8
    np.save(tmp_path / "a.npy", np.asfortranarray(mask * 100))
    with pytest.raises(ValueError, match=r"a.npy: mask has id 300 \(9 pixels out of range\)"):
        read_mask(tmp_path / "a.npy")
    assert np.array_equal(read_mask(tmp_path / "a.npy", largest=65535), mask * 100)
    np.save(tmp_path / "a.npy", mask / 2)
    with pytest.raises(ValueError, match="a.npy: an array of float64, shape .*; expected whole numbers"):
        read_mask(tmp_path / "a.npy")


def test_crops_of_wide_masks_are_those_of_narrow_ones() -> None:
    draws = np.random.default_rng(1)
    image = torch.from_numpy(draws.integers(0, 255, (3, 61, 83), dtype=np.uint8))
    mask = torch.from_numpy(draws.integers(0, 9, (61, 83), dtype=np.uint8))
    for seed in range(20):
        narrow = Augment(crop=49, ignore=255)(image, mask, torch.Generator().manual_seed(seed))
        wide = Augment(crop=49, ignore=65535)(image, mask.int() * 100, torch.Generator().manual_seed(seed))
        assert wide[1].dtype == torch.int32 and torch.equal(narrow[0], wide[0])
        assert torch.equal(torch.where(narrow[1] == 255, 65535, narrow[1].int() * 100), wide[1])
        mixed = [class_mix(pair, pair, torch.Generator().manual_seed(1), ignore) for pair, ignore in
                 ((narrow, 255), (wide, 65535))]  # fmt: skip
        assert torch.equal(mixed[0][0], mixed[1][0])


def test_argmax_loss_and_metrics_are_pytorchs() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(1, COUNT, 3, 4, generator=draws)
    size = (17, 25)
    large = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True)
    classes = upsampled_argmax(logits, size, 8)
    assert classes.dtype == torch.int32 and (classes == large.argmax(1)).float().mean() > 0.999
    averaged = mean_argmax([View(logits, size)], size, 8)
    assert averaged.dtype == torch.int32 and (averaged == large.argmax(1)).float().mean() > 0.999
    truth = torch.randint(0, COUNT, (1, *size), generator=draws, dtype=torch.int32)
    truth[:, :3] = 65535
    loss = upsampled_cross_entropy_sum(logits, truth, 8, ignore=65535)
    exact = torch.nn.functional.cross_entropy(large, truth.long(), ignore_index=65535, reduction="sum")
    torch.testing.assert_close(loss, exact)
    matrix = ConfusionMatrix(COUNT, ignore=65535)
    matrix.update(classes, truth)
    assert int(matrix.counts.sum()) == 14 * 25


@pytest.mark.filterwarnings("ignore:.*initial")
def test_a_model_of_a_thousand_classes_predicts_into_files_of_16_bits(tmp_path: Path) -> None:
    put(tmp_path / "data")
    torch.manual_seed(0)
    model = DeepLabV3(backbone="resnet18", num_classes=COUNT, weights=None, aspp_rates=(), multi_grid=None).eval()
    dataset = open_dataset(tmp_path / "data", "train")
    scores = evaluate(model, dataset, names=LABELS.names).scores
    assert len(scores.iou) == COUNT
    image = dataset[0].image[None]
    expected = predict_probabilities(model, image).argmax(1)
    assert (predict_classes(model, image) == expected).float().mean() > 0.999
    card = weights.ModelCard(
        model.arguments,
        LABELS.names,
        LABELS.palette,
        model.mean,
        model.std,
        ignore=65535,
        value_range=(0, 4095),
        bands=(1,),
    )
    weights.save(model, tmp_path / "m.safetensors", card)
    predictor = Predictor.load(tmp_path / "m.safetensors", device="cpu", bands=())
    assert predictor.rule.value_range == (0, 4095) and predictor.rule.bands == ()
    for window in (None, 128):
        predictor = Predictor.load(tmp_path / "m.safetensors", device="cpu", window=window, bands=())
        predict_files(predictor, [tmp_path / "data/images/train/0.png"], tmp_path / "out")
        with Image.open(tmp_path / "out/masks/0.png") as written:
            assert written.mode == "I;16" and written.size == (50, 40)
        result = predictor(tmp_path / "data/images/train/0.png")
        assert np.array_equal(read_mask(tmp_path / "out/masks/0.png", largest=65535), result.mask)
        assert sum(result.areas.values()) == pytest.approx(1) and max(result.names) > 255


def test_wide_masks_are_written_whole_and_by_rows_alike(tmp_path: Path) -> None:
    mask = np.arange(40 * 25, dtype=np.int32).reshape(40, 25)
    mask[0, 0] = 65535
    write_mask(tmp_path / "a.png", mask, LABELS, "note")
    write_mask_strips(tmp_path / "b.png", (mask[top : top + 7] for top in range(0, 40, 7)), (40, 25), LABELS, "note")
    for name in ("a.png", "b.png"):
        assert np.array_equal(read_mask(tmp_path / name, largest=65535), mask)
    with pytest.raises(ValueError, match="id 1000 in a mask to write; expected 0..999 or 65535"):
        write_mask(tmp_path / "a.png", mask * 0 + 1000, LABELS)
    halves = np.where(mask < 500, 65535, 999)
    picture = overlay(np.full((40, 25, 3), 9, np.uint8), halves, LABELS, alpha=1.0)
    assert picture.getpixel((3, 3)) == (9, 9, 9) != picture.getpixel((20, 35)), "the ignored id keeps the photograph"
