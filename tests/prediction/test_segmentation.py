"""The result object: overlay, cut-out, polygons, run lengths, JSON, tables, files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous import Predictor, Segmentation
from atrous.data.images.image_io import read_mask
from atrous.data.images.row_io import strips_of
from atrous.data.labels import Labels

LABELS = Labels(("background", "cat", "café au lait", "dog"), ((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)))


@pytest.fixture
def result() -> Segmentation:
    """20 by 30 pixels: a cat with a hole in it, coffee in the hole and at the border, one ignored pixel."""
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[2:12, 3:15], mask[5:8, 6:9], mask[15:, 20:] = 1, 2, 2
    mask[0, 0] = 255
    sure = np.where(mask == 1, np.linspace(0.5, 1, 30, dtype=np.float32)[None], np.float32(0.25)).astype(np.float32)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Segmentation(mask, image, LABELS, sure, "a.jpg")


def test_names_and_areas_are_those_of_the_classes_largest_first(result: Segmentation) -> None:
    assert list(result.names.items()) == [(0, "background"), (1, "cat"), (2, "café au lait")]
    shares = [np.mean(result.mask == i) for i in (0, 1, 2)]
    assert result.areas == pytest.approx(dict(zip(result.names.values(), shares, strict=True)))
    assert result.shares == pytest.approx({0: shares[0], 1: shares[1], 2: shares[2]})


def test_confidences_are_means_of_each_class(result: Segmentation) -> None:
    assert result.confidence is not None
    assert result.confidences["cat"] == pytest.approx(result.confidence[result.mask == 1].mean(), abs=1e-6)
    assert result.confidences["background"] == 0.25
    with pytest.raises(ValueError, match=r"expected predictor\(photo, confidence=True\)"):
        _ = Segmentation(result.mask, result.image, LABELS).confidences


def test_overlay_draws_the_chosen_classes_alone(result: Segmentation) -> None:
    plain = np.asarray(Image.fromarray(result.image))
    cat = np.asarray(result.overlay(1.0, classes=["cat"], legend=False))
    inside = np.zeros_like(result.mask, dtype=bool)
    inside[3:11, 4:14] = True
    inside[4:9, 5:10] = False
    assert (cat[inside] == (200, 0, 0)).all()
    assert (cat[17:, 22:] == plain[17:, 22:]).all() and (cat[14:, :18] == plain[14:, :18]).all()
    both = np.asarray(result.overlay(1.0, classes=[1, "café au lait"], legend=False))
    assert (both[17:, 22:] == (0, 200, 0)).all()
    assert (np.asarray(result.overlay(1.0, classes="background", legend=False))[14, :10] == 0).all()
    assert (np.asarray(result.overlay(0.0, legend=False))[3, 4:13] == plain[3, 4:13]).all()
    with pytest.raises(ValueError, match="there is no class 'cats'; did you mean cat?"):
        result.overlay(classes=["cats"])
    with pytest.raises(ValueError, match="there is no class 4; the classes are: background, cat, café au lait, dog"):
        result.overlay(classes=[4])
    with pytest.raises(ValueError, match="alpha is 50; expected 0 to 1"):
        result.overlay(50)


def test_cutout_is_transparent_elsewhere(result: Segmentation) -> None:
    for names, ids in ((("cat",), [1]), (("cat", 2), [1, 2]), ((), [1, 2, 3])):
        cut = np.asarray(result.cutout(*names))
        assert cut.shape == (20, 30, 4) and (cut[:, :, :3] == result.image).all()
        assert ((cut[:, :, 3] == 255) == np.isin(result.mask, ids)).all() and set(np.unique(cut[:, :, 3])) == {0, 255}
    with pytest.raises(ValueError, match="did you mean dog?"):
        result.cutout("dgo")


def test_polygons_and_run_lengths_are_by_name(result: Segmentation) -> None:
    coder = pytest.importorskip("pycocotools.mask")
    shapes = result.polygons(0)
    assert list(shapes) == list(result.names.values()) and [len(p.holes) for p in shapes["cat"]] == [1]
    assert shapes["cat"][0].holes[0].tolist() == [[6, 5], [6, 8], [9, 8], [9, 5]]
    for i, name in result.names.items():
        assert sum(shape.area for shape in shapes[name]) == (result.mask == i).sum()
        assert np.array_equal(coder.decode(result.rle()[name]), result.mask == i)
        assert sum(result.rle(compressed=False)[name]["counts"]) == 600


def test_to_dict_is_json_that_holds_the_mask(result: Segmentation) -> None:
    coder = pytest.importorskip("pycocotools.mask")
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (written["source"], written["width"], written["height"]) == ("a.jpg", 30, 20)
    cat = written["segments"][1]
    assert cat["label"] == "cat" and cat["id"] == 1 and cat["color"] == [200, 0, 0] and cat["box"] == [3, 2, 12, 10]
    assert cat["pixels"] == 111 and cat["area"] == 111 / 600 and cat["confidence"] == result.confidences["cat"]
    assert np.array_equal(coder.decode(cat["rle"]), result.mask == 1)
    outlined = json.loads(json.dumps(result.to_dict(masks="polygons", tolerance=0)))["segments"][1]
    assert "rle" not in outlined and outlined["polygons"][0][0] == [[3, 2], [15, 2], [15, 12], [3, 12]]
    assert "rle" not in result.to_dict(masks=None)["segments"][0]
    assert Segmentation(result.mask, result.image, LABELS).to_dict()["segments"][0]["confidence"] is None
    with pytest.raises(ValueError, match="masks is 'png'; expected 'rle', 'polygons' or None"):
        result.to_dict(masks="png")  # type: ignore[arg-type]


def test_to_dataframe_has_a_row_for_each_class(result: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = result.to_dataframe()
    assert list(frame.columns) == ["source", "id", "label", "area", "pixels", "confidence"]
    assert frame.label.tolist() == list(result.areas) and frame.area.tolist() == list(result.areas.values())
    assert frame.pixels.tolist() == [result.mask.size - 111 - 59 - 1, 111, 59] and (frame.source == "a.jpg").all()
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ValueError, match=r"pip install 'atrous\[dataframe\]'"):
        result.to_dataframe()


def test_segments_have_scores_where_they_were_asked_for(result: Segmentation) -> None:
    assert [segment["score"] for segment in result.segments()] == list(result.confidences.values())


def test_save_writes_mask_overlay_and_json(result: Segmentation, tmp_path: Path) -> None:
    paths = result.save(tmp_path / "new")
    assert {key: str(path.relative_to(tmp_path / "new")) for key, path in paths.items()} == {
        "mask": "masks/a.png", "overlay": "overlays/a.png", "result": "results/a.json",
    }  # fmt: skip
    assert np.array_equal(read_mask(paths["mask"]), result.mask)
    with Image.open(paths["overlay"]) as overlay:
        assert np.array_equal(np.asarray(overlay), np.asarray(result.overlay()))
    assert json.loads(paths["result"].read_text(encoding="utf-8")) == json.loads(json.dumps(result.to_dict()))
    again = Segmentation(result.mask, result.image, LABELS).save(tmp_path)
    assert again["mask"].name == "image.png" and result.save(tmp_path, "b")["result"].name == "b.json"


def test_reprs_are_short_and_a_notebook_shows_the_overlay(result: Segmentation) -> None:
    assert repr(result) == "Segmentation(30x20, background 71.5%, cat 18.5%, café au lait 9.8%)"
    with Image.open(io.BytesIO(result._repr_png_())) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(result.overlay()))
    large = Segmentation(np.zeros((1500, 3000), dtype=np.uint8), np.zeros((1500, 3000, 3), dtype=np.uint8), LABELS)
    assert Image.open(io.BytesIO(large._repr_png_())).size == (1024, 512)


@pytest.mark.parametrize("options", [{}, {"scales": (0.75, 1.25), "flip": True}], ids=["plain", "averaged"])
def test_confidence_is_the_probability_of_the_class(trained: Path, drawn, options: dict) -> None:
    predictor = Predictor.load(trained, device="cpu", window=129, **options)
    image = drawn(1, 90, 101)[0]
    result, plain = predictor(image, confidence=True), predictor(image)
    assert plain.confidence is None and result.confidence is not None
    assert np.array_equal(result.mask, plain.mask)
    assert result.confidence.shape == (90, 101) and result.confidence.dtype == np.float32
    expected = np.take_along_axis(predictor.probabilities(image), result.mask[None].astype(int), 0)[0]
    np.testing.assert_allclose(result.confidence, expected, atol=1e-5)
    # One window that holds all of it sees what one pass sees; means are interpolated between every fourth pixel.
    [(mask, sure)] = predictor.sliding_window().classes_with_confidence(strips_of(image))
    same = mask == result.mask
    assert same.mean() > 0.98 and np.abs(sure - expected)[same].max() < (0.1 if options else 1e-3)
    large = drawn(1, 101, 161)[0]
    by_windows = predictor(large, confidence=True)
    assert np.array_equal(by_windows.mask, predictor(large).mask) and by_windows.confidence is not None
    assert by_windows.confidence.shape == (101, 161) and by_windows.confidence.max() <= 1 + 1e-6


def test_the_source_is_the_name_of_the_file(trained: Path, drawn, tmp_path: Path) -> None:
    predictor = Predictor.load(trained, device="cpu")
    image = drawn(1, 20, 30)[0]
    Image.fromarray(image).save(tmp_path / "x y.png")
    with open(tmp_path / "x y.png", "rb") as file, Image.open(tmp_path / "x y.png") as opened:
        for source in (tmp_path / "x y.png", str(tmp_path / "x y.png"), file, opened):
            assert predictor(source).source == "x y.png"
    for source in (image, (tmp_path / "x y.png").read_bytes(), Image.fromarray(image)):
        assert predictor(source).source == ""
    assert repr(predictor) == f"Predictor({trained}, 4 classes: ground, red, green and 1 more, output stride 8, cpu)"


def test_a_cutout_of_more_classes_than_the_mask_has_ids() -> None:
    labels = Labels(tuple(f"class {i}" for i in range(300)), ((1, 2, 3),) * 300, ignore=65535)
    mask = np.array([[0, 270], [271, 65535]], dtype=np.int32)
    result = Segmentation(mask, np.zeros((2, 2, 3), np.uint8), labels)
    assert np.asarray(result.cutout())[..., 3].tolist() == [[255, 255], [255, 0]]
    assert np.asarray(result.cutout("class 299", 271))[..., 3].tolist() == [[0, 0], [255, 0]]


def test_results_can_be_compared_and_kept_in_sets(result: Segmentation) -> None:
    other = Segmentation(result.mask.copy(), result.image, LABELS)
    assert result == result and result != other and len({result, other}) == 2 and [other, result].index(result) == 1
