"""Train one model with one contender's loop, in its own process; print JSON.

    uv run python -m benchmarks.contenders lab cnn 42
    uv run python -m benchmarks.contenders preset fast 42

Each trains for three epochs on all 60,000 images and evaluates the test set after each, on the CPU,
which is what the lab's own timer covers. Imports and reading the files are not timed. A preset is
trained like `train` does it, on a GPU if there is one, with a validation set that is evaluated
after each epoch; its accuracy is that of test-time augmentation if it has that, which is timed too.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import lab
from fashion.data.dataset import Dataset, Subset
from fashion.data.sources import load_dataset
from fashion.models import catalogue
from fashion.settings.experiment import Experiment, Recipe
from fashion.training import evaluation, loop
from fashion.training.build import build
from fashion.training.kernels.choose import choose

EPOCHS = 3
SEED = 42


def environment(contender: str) -> dict[str, str]:
    """Return the environment of a contender's process; ours alone has our setting of OpenMP.

    Importing `fashion` sets it in the parent process.
    """
    others = contender in ("lab", "lightning")
    return {k: v for k, v in os.environ.items() if not (others and k == "GOMP_SPINCOUNT")}


def by_lab(name: str, dataset: Dataset, seed: int) -> nn.Module:
    return lab.run_lab(name, dataset, EPOCHS, seed).model


def by_lightning(name: str, dataset: Dataset, seed: int, tracked: bool = True) -> nn.Module:
    """Train with PyTorch Lightning and, if `tracked`, its MLflow logger."""
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = lab.MODELS[name]()

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            images, labels = batch
            loss = F.cross_entropy(self.model(images), labels)
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
            images, labels = batch
            correct = (self.model(images).argmax(dim=1) == labels).float().mean()
            self.log("test_accuracy", correct)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    lightning.seed_everything(seed, verbose=False)
    classifier = Classifier()
    with tempfile.TemporaryDirectory() as folder:
        loggers = lightning.pytorch.loggers
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            logger=tracked and loggers.MLFlowLogger(tracking_uri=f"sqlite:///{folder}/m.db"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        trainer.fit(classifier, *lab.dataloaders(dataset))
    return classifier.model


def by_fashion(name: str, dataset: Dataset, seed: int, kernels: str = "auto") -> nn.Module:
    model = catalogue.build(name, seed=seed)
    recipe = Recipe(epochs=EPOCHS, seed=seed, kernels=kernels)
    # Like the lab, evaluate the test set after each epoch.
    for _ in loop.train(model, dataset.train, recipe, dataset.test):
        pass
    return model


def by_preset(name: str, dataset: Dataset, seed: int) -> nn.Module:
    asked = Experiment.from_options({"preset": name, "seed": seed})
    training, validation = dataset.split(asked.val_size)
    model, _ = build(asked, training)
    for _ in loop.train(model, training, asked.recipe, validation):
        pass
    return model


CONTENDERS: dict[str, Callable[[str, Dataset, int], nn.Module]] = {
    "lab": by_lab,
    "lightning": by_lightning,
    "fashion": by_fashion,
    "preset": by_preset,
}


def main(contender: str, name: str, seed: str) -> None:
    dataset = load_dataset()
    # Compiles the kernels, which happens once per machine, before timing.
    choose(catalogue.build("cnn", seed=0), Recipe())
    before = _peak_mib()
    start = time.perf_counter()
    model = CONTENDERS[contender](name, dataset, int(seed))
    trained = time.perf_counter() - start
    tta = contender == "preset" and Experiment.from_options({"preset": name}).tta
    accuracy, evaluated = clocked_accuracy(model.eval(), dataset.test, tta=tta)
    result = {
        "seconds": trained + evaluated,
        "test_accuracy": accuracy,
        "peak_mib": _peak_mib(),
        "peak_mib_before": before,
    }
    print(json.dumps(result))


def clocked_accuracy(model: nn.Module, data: Subset, *, tta: bool) -> tuple[float, float]:
    """Return the accuracy of a model in evaluation mode, and the seconds to add to the training's.

    What an answer from two views costs belongs to the time that its accuracy takes; evaluating
    as usual does not.
    """
    start = time.perf_counter()
    accuracy = evaluation.evaluate(model, data, tta=tta).accuracy
    return accuracy, time.perf_counter() - start if tta else 0.0


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
