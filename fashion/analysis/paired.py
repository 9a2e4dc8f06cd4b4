"""Compare two models on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from scipy.stats import binomtest

if TYPE_CHECKING:  # figures are drawn without importing torch
    from torch import Tensor


class Interval(NamedTuple):
    """A confidence interval of a fraction."""

    low: float
    high: float


def wilson(right: int, images: int) -> Interval:
    """Return the 95 % confidence interval (Wilson) of an accuracy, for at least one image."""
    interval = binomtest(right, images).proportion_ci(method="wilson")
    return Interval(float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Paired:
    """Which images one model classifies correctly and the other does not.

    Attributes:
        only_first, only_second: rows of the images that only this model classifies correctly.
    """

    only_first: tuple[int, ...]
    only_second: tuple[int, ...]

    @property
    def differing(self) -> int:
        """Number of images that only one of the models classifies correctly."""
        return len(self.only_first) + len(self.only_second)

    def p_value(self, alternative: Literal["two-sided", "greater"]) -> float:
        """Return the exact p-value of McNemar's test.

        If both models were equally good, each of them would be the right one for half of the
        differing images: their number has a binomial distribution. Source: McNemar, "Note on the
        sampling error of the difference between correlated proportions" (Psychometrika 12, 1947).

        Args:
            alternative: greater if only a better second model counts.
        """
        if not self.differing:
            return 1.0
        return float(
            binomtest(len(self.only_second), self.differing, alternative=alternative).pvalue
        )


def compare(first: Tensor, second: Tensor) -> Paired:
    """Compare two models.

    Args:
        first, second: whether each model classifies the same images correctly, bool, shape (N,).
    """
    only_first, only_second = (first & ~second).nonzero(), (second & ~first).nonzero()
    return Paired(tuple(only_first.flatten().tolist()), tuple(only_second.flatten().tolist()))
