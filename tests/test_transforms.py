"""The augmentation against the plain way of doing it: scale everything, pad, crop, flip."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atrous.data.transforms import Augment, nearest_window, resized_window

Pair = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a data worker; on a busy machine, threads that wait for each other make small tensors slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(height: int, width: int, seed: int = 0) -> Pair:
    """A noisy picture, and a mask drawn from it: 1 where red is over a half."""
    coarse = torch.rand(1, 3, height // 6 + 2, width // 6 + 2, generator=torch.Generator().manual_seed(seed))
    image = (F.interpolate(coarse, (height, width), mode="bilinear")[0] * 255).to(torch.uint8)
    return image, (image[0] > 127).to(torch.uint8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(augment: Augment, image: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> Pair:
    """As section 4.1 reads, with the same draws, without any saving of work or rounding of colours."""
    scale, top, left, flip, *_ = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
    low, high = augment.scales
    factor = low + scale * (high - low)
    height, width = (max(1, round(side * factor)) for side in mask.shape)
    scaled = F.interpolate(image[None].double(), (height, width), mode="bilinear", antialias=True)[0]
    ids = F.interpolate(mask[None, None].double(), (height, width), mode="nearest-exact")[0, 0].to(torch.uint8)
    rows, columns = augment.size
    page = torch.tensor(augment.fill).double().view(3, 1, 1).repeat(1, max(rows, height), max(columns, width))
    page[:, :height, :width] = scaled
    blank = torch.full(page.shape[1:], augment.ignore, dtype=torch.uint8)
    blank[:height, :width] = ids
    y, x = int(top * (page.shape[1] - rows + 1)), int(left * (page.shape[2] - columns + 1))
    page, blank = page[:, y : y + rows, x : x + columns], blank[y : y + rows, x : x + columns]
    return (page.flip(-1), blank.flip(-1)) if flip < augment.flip else (page, blank)


@pytest.mark.parametrize("size", [(90, 120), (121, 77), (40, 300), (7, 5), (1, 1), (1, 50)])
@pytest.mark.parametrize("crop", [65, (48, 97)])
def test_equals_scaling_all_then_padding_then_cropping(size: tuple[int, int], crop: int | tuple[int, int]) -> None:
    augment = Augment(crop)
    image, mask = pair(*size)
    for seed in range(25):
        found, ids = augment(image, mask, seeded(seed))
        expected, expected_ids = reference(augment, image, mask, seeded(seed))
        assert found.shape == (3, *augment.size) and ids.shape == augment.size
        assert found.dtype == ids.dtype == torch.uint8 and found.is_contiguous() and ids.is_contiguous()
        # Half a level for each of the two passes, rows and columns, that are rounded.
        assert (found - expected).abs().max() <= 1.05
        # Where floor((i + 1/2) * ratio) falls on a whole number, PyTorch's float may round it down.
        assert (ids != expected_ids).float().mean() <= 0.02


def test_window_equals_torchs_antialiased_resize() -> None:
    image, mask = pair(101, 83)
    for size in ((50, 41), (37, 60), (202, 166), (150, 99)):
        whole = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
        window = (size[0] // 3, size[0] // 2, size[1] // 4, size[1] // 2)
        top, height, left, width = window
        part = whole[:, top : top + height, left : left + width]
        assert (resized_window(image, size, window) - part).abs().max() <= 1.01
        index = [(2 * i + 1) * 101 // (2 * size[0]) for i in range(top, top + height)]
        assert (nearest_window(mask, size, window)[:, 0] == mask[index][:, (2 * left + 1) * 83 // (2 * size[1])]).all()


def test_image_and_mask_stay_aligned() -> None:
    image, mask = pair(120, 160)
    augment = Augment(100, ignore=9)
    for seed in range(40):
        found, ids = augment(image, mask, seeded(seed))
        inside = ids != 9
        agree = ((found[0] > 127) == (ids == 1))[inside].float().mean()
        shifted = ((found[0] > 127).roll(3, 1) == (ids == 1))[inside].float().mean()
        assert agree > 0.96 and agree > shifted


def test_padding_is_the_fill_and_the_ignored_id() -> None:
    image, mask = pair(20, 30)
    found, ids = Augment(64, scales=(1, 1), flip=0, fill=(1, 2, 3), ignore=77)(image, mask, seeded(0))
    assert (found[:, :20, :30] == image).all() and (ids[:20, :30] == mask).all()
    assert (ids[20:] == 77).all() and (ids[:, 30:] == 77).all()
    assert (found[:, 20:] == torch.tensor([1, 2, 3]).view(3, 1, 1)).all()
    flipped, flipped_ids = Augment(64, scales=(1, 1), flip=1, fill=(1, 2, 3), ignore=77)(image, mask, seeded(0))
    assert (flipped.flip(-1) == found).all() and (flipped_ids.flip(-1) == ids).all()


def test_every_number_comes_from_the_generator() -> None:
    image, mask = pair(60, 80)
    augment = Augment(49, photometric=0.5)
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    first = [augment(image, mask, seeded(seed)) for seed in range(5)]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    torch.manual_seed(1)
    again = [augment(image, mask, seeded(seed)) for seed in range(5)]
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(first[0][0], other[0]) for other in first[1:])


def test_options_draw_the_same_numbers() -> None:
    image, mask = pair(60, 80)
    after = []
    for augment in (Augment(49), Augment(49, photometric=1), Augment(9, scale_step=0.25, flip=0)):
        generator = seeded(3)
        augment(image, mask, generator)
        after.append(torch.rand(1, generator=generator).item())
    assert len(set(after)) == 1


def test_scales_flips_and_places_cover_their_ranges() -> None:
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    mask = torch.zeros(100, 100, dtype=torch.uint8)
    sides = {}
    for step in (None, 0.25):
        augment = Augment(200, scale_step=step)
        sides[step] = [int((augment(image, mask, seeded(s))[1] == 0).any(1).sum()) for s in range(300)]
    assert min(sides[None]) < 55 and max(sides[None]) > 195
    assert set(sides[0.25]) == {50, 75, 100, 125, 150, 175, 200}
    mask[:, 50:] = 1
    flips = [bool(Augment(100, scales=(1, 1))(image, mask, seeded(s))[1][0, 0]) for s in range(300)]
    assert 110 < sum(flips) < 190
    tops = torch.arange(100, dtype=torch.uint8).view(-1, 1).repeat(1, 100)
    assert {int(Augment(91, scales=(1, 1))(image, tops, seeded(s))[1][0, 0]) for s in range(200)} == set(range(10))


def test_photometric_changes_the_image_alone() -> None:
    image, mask = pair(60, 80)
    plain, ids = Augment(120)(image, mask, seeded(0))
    lit, same = Augment(120, photometric=0.5)(image, mask, seeded(0))
    assert torch.equal(ids, same) and not torch.equal(plain, lit)
    assert torch.equal(plain[:, ids == 255], lit[:, ids == 255]), "padding keeps the mean pixel"
    assert (plain.float().mean() - lit.float().mean()).abs() < 100


def test_inputs_are_left_alone() -> None:
    image, mask = pair(30, 30)
    copies = image.clone(), mask.clone()
    for augment in (Augment(30, scales=(1, 1), photometric=1), Augment(20), Augment(50)):
        found, ids = augment(image, mask, seeded(0))
        found.zero_()
        ids.zero_()
        assert torch.equal(image, copies[0]) and torch.equal(mask, copies[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 0}, "crop is 0"),
        ({"crop": (5, -1)}, "crop is"),
        ({"scales": (0, 1)}, "scales is"),
        ({"scales": (2, 1)}, "scales is"),
        ({"scale_step": 0}, "scale_step is 0"),
        ({"flip": 1.1}, "flip is 1.1"),
        ({"photometric": -1}, "photometric is -1"),
        ({"ignore": 256}, "ignore is 256"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**options)


def test_unfit_pairs_are_refused() -> None:
    image, mask = pair(10, 10)
    for bad in ((image.float(), mask), (image, mask.long()), (image, mask[:5]), (image[:1], mask)):
        with pytest.raises(ValueError, match="expected uint8 3,H,W and uint8 H,W"):
            Augment(5)(*bad, seeded(0))
