"""Whether one of two models is better on the same images, or it is noise."""

import pytest
import torch

from fashion.analysis.paired import Paired, compare, wilson


def test_the_images_that_only_one_classifies_correctly_are_named() -> None:
    first = torch.tensor([True, True, False, False, True])
    second = torch.tensor([True, False, True, False, False])
    assert compare(first, second) == Paired(only_first=(1, 4), only_second=(2,))


@pytest.mark.parametrize(
    ("only_first", "only_second", "greater", "two_sided"),
    [
        (0, 0, 1, 1),
        (0, 5, 1 / 32, 1 / 16),
        (5, 0, 1, 1 / 16),
        (1, 3, 5 / 16, 10 / 16),
        (3, 3, 42 / 64, 1),
    ],
)
def test_p_is_that_of_tossing_a_coin(
    only_first: int, only_second: int, greater: float, two_sided: float
) -> None:
    found = Paired(tuple(range(only_first)), tuple(range(100, 100 + only_second)))
    assert found.p_value("greater") == pytest.approx(greater)
    assert found.p_value("two-sided") == pytest.approx(two_sided)


def test_an_interval_is_wilsons() -> None:
    # Wilson's own formula: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96.
    assert wilson(90, 100) == pytest.approx((0.82563, 0.94477), abs=1e-4)
    assert wilson(0, 10).low == 0
