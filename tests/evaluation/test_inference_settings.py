"""The ladder against `evaluate` row by row, and how often it runs the network."""

from __future__ import annotations

import pytest
import torch

from atrous.data.datasets.dataset import SegmentationDataset, open_dataset
from atrous.evaluation.evaluate import PAPER_SCALES, evaluate
from atrous.evaluation.inference_settings import Setting, ladder, markdown, rungs
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import load

SCALES = (0.75, 1.0, 1.5)


@pytest.fixture(scope="module")
def model(trained) -> DeepLabV3:
    model, _ = load(trained)
    model.output_stride = 16
    return model


@pytest.fixture(scope="module")
def val(tiny_data) -> SegmentationDataset:
    return open_dataset(tiny_data, "val")


def test_the_rows_are_the_papers() -> None:
    assert [(row.output_stride, row.scales, row.flip) for row in rungs()] == [
        (16, (1.0,), False), (8, (1.0,), False), (8, PAPER_SCALES, False), (8, PAPER_SCALES, True),
    ]  # fmt: skip
    assert [row.output_stride for row in rungs(4, (1.0, 2.0))] == [16, 8, 4, 4, 4]
    with pytest.raises(ValueError, match="down to 16, 8 or 4, found 32"):
        rungs(32)


def test_every_row_is_what_evaluate_finds(model, val) -> None:
    # The last two share no scale with a row before them, the first is out of order.
    rows = [Setting(8, SCALES, True), *rungs(8, SCALES)[:3], Setting(8, (0.5,)), Setting(16, (0.5, 2.0), True)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    actual = ladder(model, val, rows)
    for row, result in zip(rows, actual, strict=True):
        alone = evaluate(model, val, output_stride=row.output_stride, scales=row.scales, flip=row.flip)
        # The order of the sums differs, so a tie may fall either way by a rounding.
        assert result.scores.pixel_accuracy == pytest.approx(alone.scores.pixel_accuracy, abs=5e-4)
        assert result.scores.miou == pytest.approx(alone.scores.miou, abs=1e-3)
        assert (result.output_stride, result.scales, result.flip) == (row.output_stride, row.scales, row.flip)
        assert result.images == len(val)
    assert len({round(result.scores.miou, 5) for result in actual}) == len(rows)  # or little would have been told apart
    assert model.output_stride == 16 and all(
        torch.equal(before[key], value) for key, value in model.state_dict().items()
    )


def test_nothing_is_computed_twice(model, val, monkeypatch) -> None:
    runs: list[int] = []
    inner = DeepLabV3.low_resolution_logits
    monkeypatch.setattr(DeepLabV3, "low_resolution_logits", lambda self, x: runs.append(x.shape[0]) or inner(self, x))
    ladder(model, val, rungs(8, SCALES))
    # One pass at 16; at 8 one for each scale and, flipped, once more: not 1 + 1 + 3 + 6.
    assert len(runs) == len(val) * (1 + 2 * len(SCALES)) and set(runs) == {1}


def test_progress_counts_every_image_once(model, val) -> None:
    done: list[int] = []
    ladder(model, val, rungs(16, (1.0,)), progress=done.append)
    assert done == [1, 2, 3, 4]


def test_what_cannot_be_is_refused_before_any_image(model, val) -> None:
    with pytest.raises(ValueError, match="scales are"):
        ladder(model, val, [Setting(16, (0.0,))])
    with pytest.raises(ValueError, match="cannot reach output_stride 64"):
        ladder(model, val, [Setting(64)])
    with pytest.raises(ValueError, match="the data has 4 classes, the model 7"):
        ladder(DeepLabV3("timm/lcnet_050", 7), val, [Setting(16)])


def test_markdown_has_table_4s_form(model, val) -> None:
    lines = markdown(ladder(model, val, rungs(8, (1.0, 1.5)))).splitlines()
    assert lines[0] == "| OS=16 | OS=8 | MS | Flip | mIOU | seconds an image |"
    ticks = [[cell.strip() for cell in line.split("|")[1:5]] for line in lines[2:6]]
    assert ticks == [["✓", "", "", ""], ["", "✓", "", ""], ["", "✓", "✓", ""], ["", "✓", "✓", "✓"]]
    assert lines[-1] == "MS: scales 1, 1.5."
