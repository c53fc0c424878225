"""Dividing images into train and val."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atrous.data.datasets.split import divide

CLASSES = st.lists(st.frozensets(st.integers(0, 6)), min_size=2, max_size=60)


def test_a_fifth_validates_and_the_split_is_the_same_on_every_machine():
    names = [f"{number:03d}" for number in range(20)]
    train, val = divide(names)
    assert (len(train), val) == (16, [0, 15, 16, 19])  # fixed: a run on one machine is evaluated on another


def test_the_seed_and_the_share_decide():
    names = [f"{number}" for number in range(100)]
    assert divide(names)[1] != divide(names, seed=1)[1]
    assert len(divide(names, share=0.35)[1]) == 35


def test_the_order_of_the_images_does_not_matter():
    names = [f"{number}" for number in range(50)]
    classes = {name: {int(name) % 3, "rare"} if int(name) < 5 else {int(name) % 3} for name in names}
    shuffled = random.Random(0).sample(names, len(names))
    one = {names[index] for index in divide(names, [classes[name] for name in names])[1]}
    other = {shuffled[index] for index in divide(shuffled, [classes[name] for name in shuffled])[1]}
    assert one == other


@given(CLASSES, st.floats(0.05, 0.5), st.integers(0, 5))
def test_both_sides_together_are_all_and_neither_is_empty(classes, share, seed):
    train, val = divide([f"{n}" for n in range(len(classes))], classes, share, seed)
    assert train and val and sorted(train + val) == list(range(len(classes)))


@given(CLASSES, st.integers(0, 5))
def test_a_class_is_never_in_val_alone(classes, seed):
    train, val = divide([f"{n}" for n in range(len(classes))], classes, seed=seed)
    if len(val) > 1:  # one image with a class of its own, where all are so
        assert set().union(*(classes[n] for n in val)) <= set().union(*(classes[n] for n in train))


def test_every_class_of_two_images_is_on_both_sides():
    classes = [{"background", f"class {n // 2}"} for n in range(20)] + [{"background"}] * 80
    train, val = divide([f"{n}" for n in range(100)], classes)
    assert {*set().union(*(classes[n] for n in val))} == {*set().union(*classes)}
    assert {*set().union(*(classes[n] for n in train))} == {*set().union(*classes)}
    assert len(val) == 20


def test_each_class_has_about_its_share_in_val():
    classes = [{"cat"}] * 80 + [{"dog"}] * 20
    _, val = divide([f"{n}" for n in range(100)], classes)
    assert sum(n >= 80 for n in val) == 4 and len(val) == 20


@pytest.mark.parametrize(("names", "share"), [(["a"], 0.2), (["a", "b"], 0.0), (["a", "b"], 1.0), ([], 0.2)])
def test_what_cannot_be_divided_is_said(names, share):
    with pytest.raises(ValueError, match="expected"):
        divide(names, share=share)
