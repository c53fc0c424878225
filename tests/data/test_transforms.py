"""The augmentation against the plain way of doing it: scale everything, pad, crop, flip."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from atrous.data.transforms import Augment, class_mix, nearest, resized

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
    """The window that the crop shows, scaled without rounding of colours, padded, flipped; with the same draws."""
    scale, top, left, flip, *_ = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
    low, high = augment.scales
    factor = low + scale * (high - low)
    taken, sizes = [], []
    for length, crop, draw in zip(mask.shape, augment.size, (top, left), strict=True):
        whole = round(length * factor) <= crop
        count = length if whole else min(length, max(1, round(crop / factor)))
        first = int(draw * (length - count + 1))
        taken.append(slice(first, first + count))
        sizes.append(max(1, round(length * factor)) if whole else crop)
    part, ids = image[:, taken[0], taken[1]].double(), mask[taken[0], taken[1]].double()
    scaled = F.interpolate(part[None], sizes, mode="bilinear", antialias=True)[0]
    truth = F.interpolate(ids[None, None], sizes, mode="nearest-exact")[0, 0].to(torch.uint8)
    page = torch.tensor(augment.fill).double().view(3, 1, 1).repeat(1, *augment.size)
    page[:, : sizes[0], : sizes[1]] = scaled
    blank = torch.full(augment.size, augment.ignore, dtype=torch.uint8)
    blank[: sizes[0], : sizes[1]] = truth
    return (page.flip(-1), blank.flip(-1)) if flip < augment.flip else (page, blank)


@pytest.mark.parametrize("size", [(90, 120), (121, 77), (40, 300), (7, 5), (1, 1), (1, 50)])
@pytest.mark.parametrize("crop", [65, (48, 97)])
def test_equals_the_plain_way(size: tuple[int, int], crop: int | tuple[int, int]) -> None:
    augment = Augment(crop)
    image, mask = pair(*size)
    for seed in range(25):
        result, ids = augment(image, mask, seeded(seed))
        expected, expected_ids = reference(augment, image, mask, seeded(seed))
        assert result.shape == (3, *augment.size) and ids.shape == augment.size
        assert result.dtype == ids.dtype == torch.uint8 and result.is_contiguous() and ids.is_contiguous()
        # Half a level for each of the two passes, rows and columns, that are rounded.
        assert (result - expected).abs().max() <= 1.05
        # Where floor((i + 1/2) * ratio) falls on a whole number, PyTorch's float may round it down.
        assert (ids != expected_ids).float().mean() <= 0.02


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_resized_is_pillows(layout: torch.memory_format) -> None:
    image, mask = pair(101, 83)
    planes = image[None].contiguous(memory_format=layout)[0]
    for size in ((50, 41), (37, 60), (202, 166), (150, 99)):
        theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()
        assert (resized(planes, size).int() - expected).abs().max() <= 1
        rows = (torch.arange(size[0]) + 0.5).double() * 101 / size[0]
        columns = (torch.arange(size[1]) + 0.5).double() * 83 / size[1]
        assert torch.equal(nearest(mask, size), mask[rows.long()][:, columns.long()])
    assert resized(image, (101, 83)) is image and nearest(mask, (101, 83)) is mask


def test_the_crop_shows_what_scaling_all_and_cutting_would() -> None:
    # Away from its border the crop equals the same place of the whole picture, scaled (section 4.1's order of things).
    image, mask = pair(200, 300)
    augment = Augment(100, scales=(2, 2), flip=0)
    whole = F.interpolate(image[None].float(), (400, 600), mode="bilinear")[0]
    for seed in range(10):
        _, top, left, *_ = torch.rand(7, generator=seeded(seed), dtype=torch.float64).tolist()
        result, _ = augment(image, mask, seeded(seed))
        y, x = 2 * int(top * 151), 2 * int(left * 251)
        assert (result[:, 2:-2, 2:-2] - whole[:, y + 2 : y + 98, x + 2 : x + 98]).abs().max() <= 1.05


def test_scales_are_of_the_picture_brought_to_the_longest_side() -> None:
    image, mask = pair(60, 80)
    for longest, factor in ((119, 118 / 79), (40, 39 / 79), (None, 1.0), (1000, 2.0)):
        result = Augment(33, scales=(0.8, 1.2), longest_side=longest)(image, mask, seeded(3))
        expected = Augment(33, scales=(0.8 * factor, 1.2 * factor))(image, mask, seeded(3))
        assert all(torch.equal(one, other) for one, other in zip(result, expected, strict=True)), longest


def test_image_and_mask_stay_aligned() -> None:
    image, mask = pair(120, 160)
    augment = Augment(100, ignore=9)
    for seed in range(40):
        crop, ids = augment(image, mask, seeded(seed))
        inside = ids != 9
        drawn = crop[0] > 127
        agree = (drawn == (ids == 1))[inside].float().mean()
        shifted = [(drawn.roll(by, axis) == (ids == 1))[inside].float().mean() for by in (-1, 1) for axis in (0, 1)]
        assert agree > 0.95 and agree > max(shifted), "one pixel off agrees less"


def test_padding_is_the_fill_and_the_ignored_id() -> None:
    image, mask = pair(20, 30)
    result, ids = Augment(64, scales=(1, 1), flip=0, fill=(1, 2, 3), ignore=77)(image, mask, seeded(0))
    assert (result[:, :20, :30] == image).all() and (ids[:20, :30] == mask).all()
    assert (ids[20:] == 77).all() and (ids[:, 30:] == 77).all()
    assert (result[:, 20:] == torch.tensor([1, 2, 3]).view(3, 1, 1)).all()
    flipped, flipped_ids = Augment(64, scales=(1, 1), flip=1, fill=(1, 2, 3), ignore=77)(image, mask, seeded(0))
    assert (flipped.flip(-1) == result).all() and (flipped_ids.flip(-1) == ids).all()


def test_every_number_comes_from_the_generator() -> None:
    image, mask = pair(60, 80)
    augment = Augment(49, color_jitter=0.5)
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
    for augment in (Augment(49), Augment(49, color_jitter=1), Augment(9, scale_step=0.25, flip=0)):
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


def test_color_jitter_changes_the_image_alone() -> None:
    image, mask = pair(60, 80)
    plain, ids = Augment(120)(image, mask, seeded(0))
    lit, same = Augment(120, color_jitter=0.5)(image, mask, seeded(0))
    assert torch.equal(ids, same) and not torch.equal(plain, lit)
    assert torch.equal(plain[:, ids == 255], lit[:, ids == 255]), "padding keeps the mean pixel"
    assert (plain.float().mean() - lit.float().mean()).abs() < 100


def test_inputs_are_left_alone() -> None:
    image, mask = pair(30, 30)
    copies = image.clone(), mask.clone()
    for augment in (Augment(30, scales=(1, 1), color_jitter=1), Augment(20), Augment(50)):
        result, ids = augment(image, mask, seeded(0))
        result.zero_()
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
        ({"color_jitter": -1}, "color_jitter is -1"),
        ({"ignore": 65536}, "ignore is 65536"),
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


def test_half_of_the_classes_of_another_crop_are_laid_over_one() -> None:
    one, other = pair(40, 50, seed=1), pair(40, 50, seed=2)
    ids = torch.arange(50).div(10, rounding_mode="floor").byte().expand(40, 50).clone()  # classes 0 to 3, and ignored
    ids[ids == 4] = 255
    for seed in range(20):
        image, mask = class_mix(one, (other[0], ids), seeded(seed))
        laid = (mask == ids) & (image == other[0]).all(0)
        assert set(ids[laid].tolist()) < {0, 1, 2, 3} and laid.sum() >= 2 * 10 * 40
        assert torch.equal(image[:, ~laid], one[0][:, ~laid]) and torch.equal(mask[~laid], one[1][~laid])
    for count, expected in ((1, 1), (2, 1), (3, 2)):
        few = torch.arange(50).remainder(count).byte().expand(40, 50)
        mixed = class_mix((one[0], torch.full_like(one[1], 9)), (other[0], few), seeded(0))[1]
        assert len(set(mixed.unique().tolist()) - {9}) == expected
    nothing = torch.full((40, 50), 255, dtype=torch.uint8)
    assert torch.equal(class_mix(one, (other[0], nothing), seeded(0))[0], one[0]), "nothing to lay over it"
