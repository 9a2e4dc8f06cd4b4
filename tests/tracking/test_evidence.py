"""How far a stored model's metrics may differ from the run's."""

import pytest
import torch

from fashion.tracking.evidence import CHECKSUM, is_measured, packed, signed, undecided, unpacked


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


@pytest.mark.parametrize("size", [1, 8, 203, 5000])
def test_which_images_are_right_survives_packing(size: int) -> None:
    right = torch.rand(size, generator=torch.Generator().manual_seed(size)) < 0.9
    assert torch.equal(unpacked(packed(right)), right)
    assert len(packed(right)) < 40 + size // 6


def test_the_checksum_protects_which_images_are_right_and_fits_older_versions() -> None:
    tags = {"val_accuracy": "0.5", "validation_digest": "d"}
    # What an earlier version of this project has written.
    assert signed(tags, "s")[CHECKSUM].startswith("7be11a64466efa8f")
    new = signed(tags | {"validation_right": packed(torch.ones(4).bool())}, "s")
    assert is_measured(new, "s")
    assert not is_measured(new | {"validation_right": packed(torch.zeros(4).bool())}, "s")
