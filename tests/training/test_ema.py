"""The moving average against the recursion in float64."""

import copy

import pytest
import torch
from torch import nn

from atrous.training.ema import ExponentialMovingAverage


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def wander(model: nn.Module) -> None:
    """Change weights and statistics, as a step of training does."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(torch.randn_like(value) if value.is_floating_point() else 1)


@pytest.mark.parametrize("decay", [0.3, 0.998])
def test_it_is_the_recursion_with_a_decay_that_rises(decay: float) -> None:
    model = network()
    average = ExponentialMovingAverage(model, decay)
    expected = {key: value.double() for key, value in copy.deepcopy(model.state_dict()).items()}
    for step in range(1, 30):
        wander(model)
        average.update(model, step)
        keep = min(decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            expected[key] = keep * expected[key] + (1 - keep) * value.double()
    actual = average.model.state_dict()
    for key in (key for key in expected if key != "1.num_batches_tracked"):
        torch.testing.assert_close(actual[key].double(), expected[key], rtol=1e-5, atol=1e-5)
    assert actual["1.num_batches_tracked"] == model.state_dict()["1.num_batches_tracked"] == 29


def test_the_first_weights_are_soon_forgotten() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.fill_(1000.0)
    average = ExponentialMovingAverage(model, 0.9999)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    for step in range(1, 100):
        average.update(model, step)
    assert average.model.state_dict()["0.weight"].max() < 1.01


def test_it_neither_trains_nor_follows_by_itself() -> None:
    model = network().train()
    average = ExponentialMovingAverage(model, 0.9)
    before = copy.deepcopy(average.model.state_dict())
    wander(model)
    assert not average.model.training and model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in average.model.state_dict().items())


def test_it_is_saved_and_restored() -> None:
    model = network()
    one, two = ExponentialMovingAverage(model, 0.9), ExponentialMovingAverage(network(), 0.9)
    wander(model)
    one.update(model, 1)
    two.model.load_state_dict(copy.deepcopy(one.model.state_dict()))
    for average in (one, two):
        average.update(model, 2)
    assert all(torch.equal(two.model.state_dict()[key], value) for key, value in one.model.state_dict().items())
