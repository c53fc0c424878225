"""A step of training: its gradient is that of the whole batch, and what must not be learnt from is not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atrous.evaluation.distributed import DistributedContext
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import ModelCard, save
from atrous.ops.normalization import IMAGENET
from atrous.training import checkpoint
from atrous.training.config import Recipe, override
from atrous.training.state import State, build_model, build_optimizer, loses_scale

HERE = DistributedContext(0, 1, torch.device("cpu"))
Part = tuple[torch.Tensor, torch.Tensor, list[str]]


def batch(count: int = 4, side: int = 33, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (count, side, side), dtype=torch.uint8, generator=generator)
    labels[0, : side // 2] = 255  # so that the parts have different numbers of valid pixels
    return images, labels


def parts_of(images: torch.Tensor, labels: torch.Tensor, count: int = 1) -> list[Part]:
    pairs = zip(images.chunk(count), labels.chunk(count), strict=True)
    return [(part, truth, [f"photo{n}" for n in range(len(part))]) for part, truth in pairs]


def build(recipe: Recipe) -> State:
    return State.build(recipe, 4, 255, HERE)


def gradients(state: State, parts: list[Part]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient that a step is taken with."""
    actual: dict[str, torch.Tensor] = {}

    def note(*_: Any) -> None:
        actual.update({k: p.grad.clone() for k, p in state.model.named_parameters() if p.grad is not None})

    handle = state.optimizer.register_step_pre_hook(note)
    loss = state.take_step(parts, 0.01, HERE)
    handle.remove()
    return loss, actual


def card_of(model: DeepLabV3, **changes: Any) -> ModelCard:
    palette = tuple((i, i, i) for i in range(model.num_classes))
    card = ModelCard(model.arguments, tuple("abcd"), palette, model.mean, model.std)
    return replace(card, **changes)


def weights(state: State) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in state.model.named_parameters()}


@pytest.fixture
def float64() -> Iterator[None]:
    """Models in float64, where a gradient does not depend on the order of a sum."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def exact(state: State) -> State:
    normalise = state.objective.normalise
    state.objective.normalise = lambda images: normalise(images).double()  # type: ignore[assignment]
    if state.objective.class_weights is not None:
        state.objective.class_weights = state.objective.class_weights.float()  # as the logits in the loss
    return state


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("changes", [{}, {"class_weights": (0.5, 1.0, 2.0, 3.0)}, {"upsample_logits": False}])
def test_two_halves_give_the_gradient_of_the_whole_batch(tiny: Recipe, changes: dict) -> None:
    recipe = override(tiny, {"batch_norm": "freeze", **changes})
    images, labels = batch()
    whole_loss, whole = gradients(exact(build(recipe)), parts_of(images, labels))
    loss, halves = gradients(exact(build(recipe)), parts_of(images, labels, 2))
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert whole.keys() == halves.keys() and sum(float(value.abs().sum()) for value in whole.values()) > 0.01
    for key, value in whole.items():
        torch.testing.assert_close(halves[key], value, rtol=1e-6, atol=1e-6 * float(value.abs().max()))


@pytest.mark.parametrize("class_weights", [None, (0.5, 1.0, 2.0, 3.0)])
def test_the_loss_is_the_mean_cross_entropy_of_the_logits_at_full_size(tiny: Recipe, class_weights: Any) -> None:
    state = build(override(tiny, {"batch_norm": "freeze", "class_weights": class_weights}))
    images, labels = batch()
    logits = state.model(IMAGENET(images))
    weight = torch.tensor(class_weights) if class_weights else None
    expected = F.cross_entropy(logits, labels.long(), weight, ignore_index=255)
    expected.backward()
    own = {key: p.grad.clone() for key, p in state.model.named_parameters() if p.grad is not None}
    state.optimizer.zero_grad()
    loss, actual = gradients(state, parts_of(images, labels))
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for key, value in own.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))


def test_the_step_is_that_of_the_rate_and_of_the_heads_factor(tiny: Recipe) -> None:
    state = build(override(tiny, {"momentum": 0.0, "weight_decay": 0.0, "head_lr_factor": 10.0}))
    before = weights(state)
    _, gradient = gradients(state, parts_of(*batch()))
    for key, value in weights(state).items():
        factor = 10.0 if key.startswith(("head.", "classifier.")) else 1.0
        torch.testing.assert_close(value, before[key] - 0.01 * factor * gradient[key], rtol=1e-5, atol=1e-7)


def test_weight_decay_is_on_convolutions_alone_unless_asked(tiny: Recipe) -> None:
    model = build_model(tiny.model, 4)
    for decay_all in (False, True):
        for kind in ("sgd", "adamw"):
            recipe = override(tiny, {"weight_decay": 0.1, "decay_all": decay_all, "optimizer": kind})
            groups = build_optimizer(recipe.optim, model).param_groups
            decayed = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
            expected = {id(p) for p in model.parameters() if p.ndim > 1 or decay_all}
            assert decayed == expected
            assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_batch_with_no_valid_pixel_teaches_nothing(tiny: Recipe) -> None:
    state = build(override(tiny, {"weight_decay": 0.0, "momentum": 0.0}))
    images, labels = batch()
    before = weights(state)
    loss, gradient = gradients(state, parts_of(images, torch.full_like(labels, 255)))
    assert loss == 0.0
    assert all(torch.isfinite(value).all() and not value.any() for value in gradient.values())
    assert all(torch.equal(before[key], value) for key, value in weights(state).items())


def test_a_part_with_no_valid_pixel_does_not_change_the_mean(tiny: Recipe) -> None:
    images, labels = batch()
    recipe = override(tiny, {"batch_norm": "freeze"})
    empty = torch.full_like(labels[:2], 255)
    half = build(recipe).take_step(parts_of(images[2:], labels[2:]), 0.01, HERE)
    both = build(recipe).take_step(parts_of(images, torch.cat([empty, labels[2:]]), 2), 0.01, HERE)
    assert both == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_takes_no_step_and_names_the_batch(tiny: Recipe, value: float) -> None:
    state = build(override(tiny, {"ema_decay": 0.9}))
    state.take_step(parts_of(*batch()), 0.01, HERE)
    state.step = 7
    before, average = weights(state), copy.deepcopy(state.evaluated.state_dict())
    moments = copy.deepcopy(state.optimizer.state_dict()["state"])
    handle = state.model.classifier.register_forward_hook(lambda *args: args[2] * value)
    with pytest.raises(
        FloatingPointError, match=r"at step 7; the step is not taken. The batch: photo0, photo1, photo0"
    ):
        state.take_step(parts_of(*batch(), 2), 0.01, HERE)
    handle.remove()
    assert all(torch.equal(before[key], value) for key, value in weights(state).items())
    assert all(torch.equal(average[key], value) for key, value in state.evaluated.state_dict().items())
    assert all(p.grad is None or not p.grad.any() for p in state.model.parameters())
    for key, entry in state.optimizer.state_dict()["state"].items():
        assert torch.equal(entry["momentum_buffer"], moments[key]["momentum_buffer"])


def test_only_the_part_that_is_to_blame_is_named(tiny: Recipe) -> None:
    state = build(tiny)
    calls = iter([1.0, float("nan")])
    state.model.classifier.register_forward_hook(lambda *args: args[2] * next(calls))
    images, labels = batch()
    parts = [(images[:2], labels[:2], ["a", "b"]), (images[2:], labels[2:], ["c", "d"])]
    with pytest.raises(FloatingPointError, match="The batch: c, d$"):
        state.take_step(parts, 0.01, HERE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_takes_no_step_though_the_loss_is(tiny: Recipe, value: float) -> None:
    state = build(tiny)
    before = weights(state)
    state.model.classifier.weight.register_hook(lambda gradient: gradient * value)
    message = r"the loss is finite, but not the gradient of classifier.weight at step 0; the step is not taken. The"
    with pytest.raises(FloatingPointError, match=message):
        state.take_step(parts_of(*batch()), 0.01, HERE)
    assert all(torch.equal(before[key], value) for key, value in weights(state).items())


def test_a_gradient_whose_sum_overflows_is_finite(tiny: Recipe) -> None:
    state = build(override(tiny, {"weight_decay": 0.0}))
    state.model.classifier.weight.register_hook(lambda gradient: torch.full_like(gradient, 3e38))
    state.take_step(parts_of(*batch()), 0.0, HERE)


def test_in_fp16_a_step_without_a_finite_gradient_is_left_out_and_many_in_a_row_end_the_run(tiny: Recipe) -> None:
    state = build(override(tiny, {"amp": "fp16"}))
    before = weights(state)
    state.model.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    state.take_step(parts_of(*batch()), 0.01, HERE)
    assert all(torch.equal(before[key], value) for key, value in weights(state).items())
    with pytest.raises(FloatingPointError, match="no gradient was finite at any scale of the loss"):
        for _ in range(40):
            state.take_step(parts_of(*batch(2, 17)), 0.01, HERE)
    assert all(torch.equal(before[key], value) for key, value in weights(state).items())


@pytest.mark.parametrize("where", ["weight", "statistics", "moment", "average"])
def test_what_is_not_finite_is_never_saved(where: str, tiny: Recipe, tmp_path: Path) -> None:
    state = build(override(tiny, {"ema_decay": 0.9}))
    state.take_step(parts_of(*batch()), 0.01, HERE)
    state.save(tmp_path, HERE, {})
    norm = next(state.model.batch_norms())
    places = {
        "weight": state.model.classifier.weight,
        "statistics": norm.running_var,
        "moment": state.optimizer.state[state.model.classifier.weight]["momentum_buffer"],
        "average": state.evaluated.classifier.bias,
    }
    with torch.no_grad():
        places[where].view(-1)[0] = float("inf")
    state.step = 1
    with pytest.raises(FloatingPointError, match="after step 1 there is NaN or infinity in .*; nothing is saved"):
        state.save(tmp_path, HERE, {})
    assert checkpoint.steps(tmp_path) == [0]


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "aspp", "aspp_pointwise": True, "image_pooling": True, "crop": 16},
        {"head": "cascade", "backbone": "resnet18", "last_block": 5},
    ],
    ids=["aspp", "cascade"],
)
@pytest.mark.parametrize("side", [33, 17])
def test_a_batch_of_one_trains(tiny: Recipe, changes: dict, side: int) -> None:
    state = build(override(tiny, {"batch_size": 1, **changes}))
    images, labels = batch(2, side)
    before = weights(state)
    loss, gradient = gradients(state, parts_of(images[1:], labels[1:]))
    assert 0 < loss < 10 and all(torch.isfinite(value).all() for value in gradient.values())
    assert not torch.equal(before["classifier.weight"], weights(state)["classifier.weight"])
    assert all(torch.isfinite(value).all() for value in state.model.state_dict().values())


def test_frozen_batch_norm_keeps_its_statistics(tiny: Recipe) -> None:
    for kind, moves in (("freeze", False), ("statistics", False), ("train", True)):
        state = build(override(tiny, {"batch_norm": kind}))
        norm = list(state.model.batch_norms())[-1]
        before, shift = norm.running_mean.clone(), norm.bias.detach().clone()
        state.take_step(parts_of(*batch()), 0.1, HERE)
        assert torch.equal(before, norm.running_mean) is not moves
        assert torch.equal(shift, norm.bias) is (kind == "freeze")


def test_the_decay_of_the_statistics_is_the_recipes(tiny: Recipe) -> None:
    model = build_model(override(tiny, {"batch_norm_decay": 0.9997}).model, 4)
    actual = [norm.momentum for norm in model.batch_norms()]
    assert actual == pytest.approx([0.0003] * len(actual)) and len(actual) > 20


@pytest.mark.parametrize("amp", ["bf16"])
def test_mixed_precision_stays_near_full_precision(tiny: Recipe, amp: Any) -> None:
    full = build(tiny).take_step(parts_of(*batch()), 0.01, HERE)
    mixed = build(override(tiny, {"amp": amp})).take_step(parts_of(*batch()), 0.01, HERE)
    assert mixed == pytest.approx(full, rel=0.02)


@pytest.mark.parametrize(
    "changes", [{}, {"ema_decay": 0.9, "optimizer": "adamw", "grad_accum_steps": 2, "head_lr_factor": 3.0}]
)
def test_a_state_restored_goes_on_to_the_same_bytes(tiny: Recipe, changes: dict) -> None:
    recipe = override(tiny, changes)
    straight = build(recipe)
    for seed in range(2):
        straight.take_step(parts_of(*batch(seed=seed), recipe.optim.grad_accum_steps), 0.01, HERE)
        straight.step += 1
    straight.best = 0.25
    saved = copy.deepcopy(straight.to_save())
    drawn = torch.rand(3)
    torch.manual_seed(99)
    resumed = State.build(recipe, 4, 255, HERE, saved)
    assert torch.equal(torch.rand(3), drawn)
    assert (resumed.step, resumed.best) == (2, 0.25)
    for state in (straight, resumed):
        state.take_step(parts_of(*batch(seed=5), recipe.optim.grad_accum_steps), 0.005, HERE)
    for one, other in ((straight.model, resumed.model), (straight.evaluated, resumed.evaluated)):
        theirs = other.state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())


def test_the_seed_decides_the_first_weights(tiny: Recipe) -> None:
    one, same, other = (build(override(tiny, {"seed": seed})).model.classifier.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_the_stride_sits_where_the_weights_have_it(tiny: Recipe) -> None:
    ours = override(tiny, {"backbone": "resnet18"})
    assert build_model(ours.model, 4).arguments["stride_in"] == "last"
    assert build_model(override(ours, {"weights": "imagenet"}).model, 4, blank=True).arguments["stride_in"] == "first"
    assert build_model(override(ours, {"stride_in": "first"}).model, 4).arguments["stride_in"] == "first"


def test_the_normalisation_of_the_first_weights_outlives_a_resume(tiny: Recipe, tmp_path: Path) -> None:
    theirs = build_model(tiny.model, 4)
    start = tmp_path / "start.safetensors"
    save(theirs, start, card_of(theirs, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))
    recipe = override(tiny, {"weights": str(start)})
    state = build(recipe)
    assert state.model.mean == (0.5, 0.4, 0.3) != theirs.mean
    start.unlink()
    again = State.build(recipe, 4, 255, HERE, state.to_save())
    assert (again.model.mean, again.model.std) == (state.model.mean, state.model.std)
    images, labels = batch()
    losses = {one.take_step(parts_of(images, labels), 0.01, HERE) for one in (state, again)}
    assert len(losses) == 1


def test_the_head_learns_batch_norm_over_a_frozen_backbone(tiny: Recipe) -> None:
    state = build(override(tiny, {"batch_norm": "head"}))
    frozen = {id(norm) for norm in state.model.backbone.modules() if isinstance(norm, torch.nn.BatchNorm2d)}
    before = {norm: norm.running_mean.clone() for norm in state.model.batch_norms() if norm.running_mean is not None}
    state.take_step(parts_of(*batch()), 0.01, HERE)
    moved = {id(norm) for norm, mean in before.items() if not torch.equal(norm.running_mean, mean)}  # type: ignore[arg-type]
    assert frozen and moved == {id(norm) for norm in before} - frozen


def test_trained_batch_norm_loses_the_scale_of_weights_that_have_it_folded(tiny: Recipe, tmp_path: Path) -> None:
    recipe, path = override(tiny, {"batch_norm": "train"}), tmp_path / "folded.safetensors"
    model = build_model(recipe.model, 4)  # its statistics are 0 and 1, as those of a graph whose norms are folded
    save(model, path, card_of(model))
    from_it = override(recipe, {"weights": str(path)})
    assert loses_scale(from_it.model, build_model(from_it.model, 4))
    for harmless in (
        recipe,
        override(from_it, {"batch_norm": "head"}),
        override(from_it, {"batch_norm": "statistics"}),
    ):
        assert not loses_scale(harmless.model, build_model(harmless.model, 4))
    next(norm for norm in model.batch_norms()).running_mean.fill_(0.5)
    save(model, path, card_of(model))
    assert not loses_scale(from_it.model, build_model(from_it.model, 4))
