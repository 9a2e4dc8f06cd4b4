"""Set pictures apart so that every class is on both sides, and related pictures are on one."""

from collections import Counter
from collections.abc import Sequence

import numpy as np


class SplitError(ValueError):
    """A class cannot be on both sides.

    Attributes:
        label: the class.
    """

    def __init__(self, label: int) -> None:
        super().__init__(f"class {label} has too few unrelated pictures")
        self.label = label


def unite(*kinds: Sequence[str]) -> np.ndarray:
    """Return a number for each picture, equal for those that are related, in order of appearance.

    Args:
        kinds: relations, each as a text for each picture. Those with equal texts are related, and
            so are those that are related to the same one; an empty text relates to nothing.
    """
    parents = list(range(len(kinds[0])))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    for texts in kinds:
        first: dict[str, int] = {}
        for place, text in enumerate(texts):
            if text:
                one, other = root(first.setdefault(text, place)), root(place)
                parents[max(one, other)] = min(one, other)
    return np.unique([root(place) for place in range(len(parents))], return_inverse=True)[1]


def hold_out(
    labels: Sequence[int], units: Sequence[int], size: int, keep: int, order: Sequence[int]
) -> list[int]:
    """Choose pictures to set apart: about `size`, of each class in proportion, and whole units.

    Units are taken in their order if that brings the number of each class nearer to its share.
    Where all units are single pictures, the number is exact. (StratifiedGroupKFold of scikit-learn
    sets apart only one part in k, and takes minutes for 100,000 units.)

    Args:
        labels: class of each picture, from 0.
        units: number of the unit of each picture, from 0.
        size: how many pictures to set apart.
        keep: so many units of each class are not set apart; at least one is.
        order: numbers of all units.

    Returns:
        The places of the pictures that are set apart, sorted.

    Raises:
        SplitError: a class is in too few units.
    """
    content: list[Counter[int]] = [Counter() for _ in range(max(units) + 1)]
    for label, unit in zip(labels, units, strict=True):
        content[unit][label] += 1
    left = Counter(label for each in content for label in each)
    missing = _shares(labels, size)
    taken: set[int] = set()

    def take(unit: int) -> None:
        taken.add(unit)
        for label, count in content[unit].items():
            missing[label] -= count
            left[label] -= 1

    def can_be_taken(unit: int) -> bool:
        return unit not in taken and all(left[label] > keep for label in content[unit])

    for unit in order:
        nearer = sum(
            abs(missing[label]) - abs(missing[label] - count)
            for label, count in content[unit].items()
        )
        if nearer > 0 and can_be_taken(unit):
            take(unit)
    present = {label for unit in taken for label in content[unit]}
    for label in sorted(left.keys() - present):
        # All its units are larger than its share: the smallest of them.
        candidates = [unit for unit in order if label in content[unit] and can_be_taken(unit)]
        if not candidates:
            raise SplitError(label)
        take(min(candidates, key=lambda unit: content[unit].total()))
    return [place for place, unit in enumerate(units) if unit in taken]


def _shares(labels: Sequence[int], size: int) -> dict[int, int]:
    """Divide `size` among the classes: in proportion, by largest remainders, at least one each."""
    counts = Counter(labels)
    exact = {label: size * count / len(labels) for label, count in sorted(counts.items())}
    shares = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(exact, key=lambda label: shares[label] - exact[label])
    for label in by_remainder[: size - sum(shares.values())]:
        shares[label] += 1
    return {label: max(1, share) for label, share in shares.items()}
