"""The lab's loop, reimplemented: the reference for correctness and speed.

A torchvision dataset with ToTensor, a shuffled DataLoader, plain modules, loss and accuracy read
with .item() at each step, and an evaluation of the test set after each epoch, which the lab's timer
includes.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn
from torch.utils import data
from torch.utils.data import DataLoader
from torchvision.transforms import ToTensor

from fashion.data.dataset import Dataset, Subset


class LabDataset(data.Dataset):
    """Equivalent of torchvision.datasets.FashionMNIST(transform=ToTensor())."""

    def __init__(self, subset: Subset) -> None:
        self.images, self.labels = subset.images[:, 0], subset.labels
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.images[index].numpy(), mode="L")
        return self.transform(image), int(self.labels[index])


def dataloaders(dataset: Dataset) -> tuple[DataLoader, DataLoader]:
    """Return the lab's loaders of the training and the test set."""
    return (
        DataLoader(LabDataset(dataset.train), batch_size=32, shuffle=True),
        DataLoader(LabDataset(dataset.test), batch_size=32, shuffle=False),
    )


class FashionMNISTModelV0(nn.Module):
    def __init__(self, hidden_units: int = 10) -> None:
        super().__init__()
        self.layer_stack = nn.Sequential(
            nn.Flatten(), nn.Linear(784, hidden_units), nn.Linear(hidden_units, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer_stack(x)


class FashionMNISTModelV1(nn.Module):
    def __init__(self, hidden_units: int = 10) -> None:
        super().__init__()
        self.layer_stack = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, hidden_units),
            nn.ReLU(),
            nn.Linear(hidden_units, 10),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer_stack(x)


class FashionMNISTModelV2(nn.Module):
    def __init__(self, hidden_units: int = 10) -> None:
        super().__init__()
        self.block_1 = nn.Sequential(
            nn.Conv2d(1, hidden_units, kernel_size=3, stride=1, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden_units, hidden_units, kernel_size=3, stride=1, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
        )
        self.block_2 = nn.Sequential(
            nn.Conv2d(hidden_units, hidden_units, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden_units, hidden_units, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(hidden_units * 7 * 7, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.block_2(self.block_1(x)))


MODELS = {
    "baseline": FashionMNISTModelV0,
    "nonlinear": FashionMNISTModelV1,
    "cnn": FashionMNISTModelV2,
}


@dataclass
class LabResult:
    """The trained model and its test accuracy as the lab computes it, a mean of batch means."""

    model: nn.Module
    batch_mean_accuracy: float


def run_lab(name: str, dataset: Dataset, epochs: int, seed: int = 42) -> LabResult:
    """Train the lab's model called `name` as the lab does."""
    train_dataloader, test_dataloader = dataloaders(dataset)
    torch.manual_seed(seed)
    model = MODELS[name]()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(seed)
    accuracy = 0.0
    for _ in range(epochs):
        model.train()
        train_loss, train_accuracy = 0.0, 0.0
        for images, labels in train_dataloader:
            logits = model(images)
            loss = loss_fn(logits, labels)
            train_loss += loss.item()
            train_accuracy += (logits.argmax(dim=1) == labels).float().mean().item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        test_loss, accuracy = 0.0, 0.0
        with torch.inference_mode():
            for images, labels in test_dataloader:
                logits = model(images)
                test_loss += loss_fn(logits, labels).item()
                accuracy += (logits.argmax(dim=1) == labels).float().mean().item()
        accuracy /= len(test_dataloader)
    return LabResult(model, accuracy)
