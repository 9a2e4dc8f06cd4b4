"""Metrics of unequal classes."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from fashion.data.dataset import Subset, to_float
from fashion.settings.experiment import Recipe
from fashion.settings.task import Task
from fashion.training.evaluation import evaluate
from fashion.training.steps import Steps

TASK = Task("shapes", "Shapes", ("circle", "square", "star", "line"), (1, 2, 2))


def subset(labels: list[int]) -> Subset:
    images = torch.randint(
        0, 256, (len(labels), *TASK.shape), generator=torch.Generator().manual_seed(0)
    )
    return Subset("shapes", images.to(torch.uint8), torch.tensor(labels), "", TASK)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 4)).eval()


@pytest.mark.parametrize(
    "labels",
    [[0] * 30 + [1] * 8 + [2] * 3 + [3], [0] * 10 + [2] * 5, [1] * 7],
    ids=["rare classes", "absent classes", "one class"],
)
@pytest.mark.filterwarnings("ignore:.*y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_balanced_accuracy_and_macro_f1_are_those_of_scikit_learn(labels: list[int]) -> None:
    found = evaluate(network(), subset(labels))
    predicted = found.logits.argmax(dim=1)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert {*found.metrics("val")} == {
        "val_loss",
        "val_accuracy",
        "val_balanced_accuracy",
        "val_macro_f1",
    }


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    data = subset([0] * 6 + [1] * 3 + [3])  # none of class 2
    model = network()
    weights = torch.zeros(4)
    weights[[0, 1, 3]] = torch.from_numpy(
        compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=data.labels.numpy())
    ).float()
    bias = model[1].bias.detach().clone()
    steps = Steps(model, Recipe(batch_size=10, lr=0.5, class_weights="balanced"), data)
    logits = steps.run([(to_float(data.images), data.labels)], epoch=1).requires_grad_()
    loss = F.cross_entropy(logits, data.labels, weight=weights, reduction="sum") / len(data)
    (gradient,) = torch.autograd.grad(loss, logits)
    step = (bias - model[1].bias.detach()) / 0.5
    assert torch.allclose(step, gradient.sum(dim=0), atol=1e-6)
