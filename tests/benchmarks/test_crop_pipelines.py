"""The pictures that pipelines are timed on, and that each pipeline goes through all of them."""

import numpy as np
import pytest
from PIL import Image

from atrous.data.datasets.dataset import SegmentationDataset
from benchmarks import crop_pipelines
from benchmarks.crop_pipelines import FILES, Crops, data


def test_the_pictures_are_valid_pairs_and_as_rich_as_photographs() -> None:
    made = Crops(65)
    assert len(made.items) == FILES
    with Image.open(made.items[0].image) as image:
        assert image.size == (640, 480) and image.format == "JPEG"
    # A photograph of this size and quality has 50 to 150 kB; an even surface would decode far quicker.
    assert 50_000 < np.mean([item.image.stat().st_size for item in made.items]) < 200_000
    from atrous.data.labels import VOC

    sample = SegmentationDataset(made.items, VOC)[0]
    assert sample.image.shape == (3, 480, 640) and len(sample.mask.unique()) > 10


def test_each_pipeline_reads_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Crops(65)
    opened: list[object] = []
    original = Image.open

    def counting(source: object, *rest: object, **options: object) -> Image.Image:
        opened.append(source)
        return original(source, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", counting)
    for run, each in ((made.ours, 2), (made.torchvisions, 2), (made.decoding, 1)):
        opened.clear()
        run()
        assert len(opened) >= each * FILES


def test_cached_images_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Crops(65)
    made.cached()
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a file was opened"))
    made.cached()


def test_ours_makes_a_crop_of_the_size_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    monkeypatch.setattr(crop_pipelines, "IMAGENET", lambda image: shapes.append(tuple(image.shape)))
    Crops(65).ours()
    assert shapes == [(3, 65, 65)] * FILES


def test_the_candidates_are_ours_theirs_and_the_limit() -> None:
    assert [candidate.name for candidate in data(65)] == [
        "atrous", "atrous, images cached", "torchvision reference", "Pillow, decoding alone",
    ]  # fmt: skip
