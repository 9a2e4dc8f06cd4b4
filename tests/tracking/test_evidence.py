"""How far a stored model's metrics may differ from the run's."""

import pytest
import torch

from fashion.tracking.evidence import undecided


def logits_of(*margins: float) -> torch.Tensor:
    """Return logits by which class 0 is ahead of class 1 by each margin; the largest is 10."""
    logits = torch.full((len(margins), 10), -10.0)
    logits[:, 0] = torch.tensor(margins)
    logits[:, 1] = 0
    return logits


@pytest.mark.parametrize(
    ("margins", "images"),
    [
        ([3.0, -2.0], 0),
        ([3.0, 0.0005], 1),
        ([3.0, -0.0005], 1),
        ([3.0, 0.002], 0),
        ([0.0, 0.0, 0.0005], 1),
        ([float("nan"), 3.0], 0),
    ],
)
def test_only_near_ties_may_be_classified_differently(margins: list[float], images: int) -> None:
    labels = torch.zeros(len(margins), dtype=torch.int64)
    assert undecided(logits_of(*margins), labels, 1e-4) == images


def test_a_model_that_answers_the_same_to_everything_does_not_pass_with_any_accuracy() -> None:
    labels = torch.zeros(20_000, dtype=torch.int64)
    assert undecided(torch.zeros(20_000, 10), labels, 1e-4) == 2
