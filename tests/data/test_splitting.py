"""Pictures are set apart by class, and related ones together."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fashion.data.splitting import SplitError, hold_out, unite


def test_pictures_are_united_by_any_relation_and_through_others() -> None:
    contents = ["a", "b", "b", "c", "d", "d"]
    groups = ["", "x", "", "x", "", "y"]
    assert unite(contents, groups).tolist() == [0, 1, 1, 1, 2, 2]


def test_a_picture_that_is_already_united_brings_its_relations() -> None:
    assert unite(["", "b", "b"], ["x", "", "x"]).tolist() == [0, 0, 0]


def test_nothing_is_united_by_no_group() -> None:
    assert unite(["a", "b", "c"], ["", "", ""]).tolist() == [0, 1, 2]


def test_single_pictures_are_set_apart_in_exact_proportion() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 10
    held = hold_out(labels, range(100), 20, 1, random.Random(0).sample(range(100), 100))
    assert Counter(labels[place] for place in held) == {0: 12, 1: 6, 2: 2}
    assert held == sorted(held)


def test_what_remains_goes_to_the_classes_nearest_to_another_picture() -> None:
    labels = [0] * 55 + [1] * 45
    held = hold_out(labels, range(100), 3, 1, range(100))
    assert Counter(labels[place] for place in held) == {0: 2, 1: 1}


def test_the_order_of_the_units_decides_which_are_taken() -> None:
    assert hold_out([0] * 4, range(4), 1, 1, [2, 0, 1, 3]) == [2]


def test_a_class_of_few_large_units_is_on_both_sides() -> None:
    labels = [0] * 90 + [1] * 10
    units = [*range(90), *([90] * 6), *([91] * 4)]
    held = hold_out(labels, units, 10, 1, range(92))
    assert held[9:] == [96, 97, 98, 99]


def test_a_class_of_too_few_units_is_named() -> None:
    with pytest.raises(SplitError) as caught:
        hold_out([0, 0, 0, 1, 1], [0, 1, 2, 3, 3], 2, 1, range(4))
    assert caught.value.label == 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=60),
    st.integers(1, 30),
    st.integers(1, 2),
)
def test_units_stay_whole_and_classes_on_both_sides(
    pictures: list[tuple[int, int]], size: int, keep: int
) -> None:
    labels = [label for label, _ in pictures]
    units = unite([str(unit) for _, unit in pictures]).tolist()
    try:
        held = hold_out(labels, units, size, keep, range(max(units) + 1))
    except SplitError:
        return  # a class in few units; the test before covers it
    rest = [place for place in range(len(pictures)) if place not in held]
    assert not {units[place] for place in held} & {units[place] for place in rest}
    for label in set(labels):
        assert any(labels[place] == label for place in held)
        assert len({units[place] for place in rest if labels[place] == label}) >= keep
