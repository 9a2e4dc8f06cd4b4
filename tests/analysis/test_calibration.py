import math

import pytest
import torch

from fashion.analysis.calibration import fit_temperature


def sampled(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from the softmax of logits, and these logits times `scale`."""
    logits = 2 * torch.randn(20_000, 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    return labels, scale * logits


@pytest.mark.parametrize("scale", [0.5, 1, 3])
def test_the_temperature_undoes_a_scale_of_the_logits(scale: float) -> None:
    assert fit_temperature(*sampled(scale)) == pytest.approx(scale, rel=0.03)


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        (torch.arange(10), torch.full((10, 10), math.nan)),
        (torch.empty(0, dtype=torch.int64), torch.empty(0, 10)),
    ],
)
def test_where_nothing_can_be_fitted_probabilities_stay(
    labels: torch.Tensor, logits: torch.Tensor
) -> None:
    assert fit_temperature(labels, logits) == 1
