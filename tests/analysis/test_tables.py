"""Tables of predictions say what the predictions were."""

import math

import pytest
import torch

from fashion.analysis import tables


def logits(confidence: list[float], predicted: list[int]) -> torch.Tensor:
    """Return logits whose softmax gives `predicted` the probability `confidence`."""
    rows = []
    for sure, index in zip(confidence, predicted, strict=True):
        probabilities = torch.full((10,), (1 - sure) / 9, dtype=torch.float64)
        probabilities[index] = sure
        rows.append(probabilities.clamp_min(1e-30).log())
    return torch.stack(rows)


def test_calibration_compares_confidence_with_accuracy_in_each_bin() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4])
    answers = logits([0.9, 0.9, 0.95, 0.5, 1.0], predicted=[0, 1, 9, 3, 4])
    table = tables.calibration(labels, answers, bins=5)
    assert table["images"].tolist() == [0, 0, 1, 0, 4]
    assert table["up_to"].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert table["confidence"][4] == pytest.approx((0.9 + 0.9 + 0.95 + 1) / 4)
    assert table["accuracy"][4] == 0.75
    assert table["accuracy"].isna().tolist() == [True, True, False, True, False]
    expected = (abs(0.5 - 1) + 4 * abs(0.9375 - 0.75)) / 5
    assert tables.expected_calibration_error(table) == pytest.approx(expected)


def test_a_model_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    labels = torch.arange(10)
    right_half = [label if label % 2 else (label + 1) % 10 for label in range(10)]
    table = tables.calibration(labels, logits([0.5] * 10, right_half))
    assert tables.expected_calibration_error(table) == pytest.approx(0, abs=1e-9)


def test_a_diverged_model_has_no_calibration() -> None:
    table = tables.calibration(torch.arange(10), torch.full((10, 10), math.nan))
    assert table["images"].sum() == 0
    assert math.isnan(tables.expected_calibration_error(table))


def test_the_mistakes_it_was_surest_of_come_first() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4])
    answers = logits([0.6, 0.99, 0.8, 0.7, 0.9], predicted=[9, 1, 9, 9, 9])
    assert tables.most_confidently_wrong(labels, answers).tolist() == [4, 2, 3, 0]
    assert tables.most_confidently_wrong(labels, answers, top=2).tolist() == [4, 2]
    assert len(tables.most_confidently_wrong(torch.tensor([1]), answers[1:2])) == 0
