"""Make probabilities say how often a model is right."""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor

# Wider than any model needs that has learnt something.
BOUNDS = (0.05, 20.0)


def fit_temperature(labels: Tensor, logits: Tensor) -> float:
    """Return the temperature that logits are to be divided by before the softmax.

    It minimises the mean cross-entropy, and changes no prediction. Source: Guo, Pleiss, Sun and
    Weinberger, "On Calibration of Modern Neural Networks" (arXiv:1706.04599), section 4.2.

    Args:
        labels: class indices, shape (N,), of images that the model was not trained on.
        logits: shape (N, 10).

    Returns:
        The temperature within `BOUNDS`; 1 if the logits are not finite, or there are none.
    """
    values, rows = logits.double().numpy(), np.arange(len(labels))
    if not len(labels) or not np.isfinite(values).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(values / math.exp(log_temperature), axis=1)
        return -float(log_probabilities[rows, labels.numpy()].mean())

    low, high = map(math.log, BOUNDS)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x)
