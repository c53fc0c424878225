"""Figure 4 against a count on a padded map; the grids of pictures as they are laid out."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atrous.data.datasets.dataset import open_dataset
from atrous.evaluation.evaluate import Setting
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import load
from atrous.reproduction.figures import (
    COUNTS,
    figure_4_csv,
    figure_4_markdown,
    figure_4_plot,
    images_with_most,
    picture_grid,
    predicted,
    spread_with_failure,
    valid_weights,
)


@pytest.mark.parametrize("rate", [1, 6, 12, 18, 24, 31, 32, 33, 36, 48, 63, 64, 65, 90])
def test_figure_4_is_what_a_filter_of_ones_counts(rate: int) -> None:
    counted = F.conv2d(torch.ones(1, 1, 65, 65), torch.ones(1, 1, 3, 3), padding=rate, dilation=rate)
    assert counted.shape[-2:] == (65, 65)
    valid = valid_weights(rate)
    for count in COUNTS:
        assert valid[count] == Fraction(int((counted == count).sum()), 65 * 65)
    assert sum(valid.values()) == 1


def test_figure_4_degenerates_to_the_centre() -> None:
    assert valid_weights(65)[1] == 1 and valid_weights(1)[9] == Fraction(63, 65) ** 2


def test_figure_4s_texts() -> None:
    rows = [line.split(",") for line in figure_4_csv().splitlines()]
    assert rows[0] == ["rate", "1 valid", "2 valid", "3 valid", "4 valid", "6 valid", "9 valid", "mean valid of 9"]
    assert len(rows) == 101 and all(sum(map(float, row[1:7])) == pytest.approx(1, abs=1e-5) for row in rows[1:])
    assert float(rows[1][7]) == pytest.approx(9 * (1 - 2 / (3 * 65)) ** 2, abs=1e-4)
    assert "| 18 | 0.000 | 0.000 | 0.000 | 0.307 | 0.494 | 0.199 |" in figure_4_markdown()


def test_figure_4s_plot(tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    figure_4_plot(tmp_path / "figure-4.png")
    assert [path.name for path in tmp_path.iterdir()] == ["figure-4.png"]


def test_a_grid_has_a_column_for_photo_truth_and_each_model(trained, tiny_data) -> None:
    model, _ = load(trained)
    dataset = open_dataset(tiny_data, "val")
    sheet = picture_grid({"before": model, "after": model}, dataset, [0, 2], Setting(8))
    columns, pixels = sheet.width // 4, np.asarray(sheet)
    photo = dataset[0].image.permute(1, 2, 0).numpy()
    height, width = photo.shape[:2]
    left = (dataset[2].image.shape[2] - width) // 2  # in the middle of its column, which is as wide as the widest
    tops = [top for top in range(sheet.height - height) if (pixels[top, left : left + width] == photo[0]).all()]
    assert tops, "the first photo is not there"
    assert (pixels[tops[0] : tops[0] + height, left : left + width] == photo).all()
    # Truth and prediction lie over the photo, each in its column.
    assert all((pixels[tops[0] + height // 2, columns * i : columns * (i + 1)] != 255).any() for i in range(4))


def test_the_last_picture_is_the_worst(trained, tiny_data) -> None:
    model, _ = load(trained)
    dataset = open_dataset(tiny_data, "val")
    indices = spread_with_failure(model, dataset, Setting(8), count=2)

    def miou(index: int) -> float:
        sample = dataset[index]
        truth, ids = sample.mask.numpy(), predicted(model, sample.image, Setting(8))
        valid = truth != 255
        shares = [((truth == k) & (ids == k) & valid).sum() / (((truth == k) | (ids == k)) & valid).sum()
                  for k in range(4) if (((truth == k) | (ids == k)) & valid).any()]  # fmt: skip
        return float(np.mean(shares))

    assert len(indices) == len(set(indices)) == 3
    assert indices[-1] == min(range(len(dataset)), key=miou)


def test_pictures_that_hold_most_of_a_class_come_first(tiny_data) -> None:
    dataset = open_dataset(tiny_data, "train")
    shares = [float((dataset[i].mask == 2).float().mean()) for i in range(len(dataset))]
    assert images_with_most(dataset, ["green"], 3) == sorted(range(len(dataset)), key=lambda i: -shares[i])[:3]


def test_a_prediction_leaves_the_model_as_it_was(tiny_data) -> None:
    model = DeepLabV3("timm/lcnet_050", 4, aspp_rates=(1,), image_pooling=False).train()
    ids = predicted(model, open_dataset(tiny_data, "val")[0].image, Setting(8))
    assert ids.dtype == np.uint8 and model.training and model.output_stride == 16
