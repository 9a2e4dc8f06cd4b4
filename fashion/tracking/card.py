"""Describe the registered model and its versions in Markdown."""

from mlflow.entities import Run

from fashion.analysis import markdown, tables
from fashion.data.dataset import FashionMNIST
from fashion.errors import RegistryError
from fashion.settings.task import CHAMPION, CLASSES, HOMEPAGE, TRAIN_SIZE
from fashion.tracking.evidence import Measurement


def registered_model(name: str) -> str:
    """Describe the registered model `name`; MLflow's list shows the beginning as plain text."""
    return markdown.text(
        [
            "Names the garment in a picture: T-shirt, trouser, pullover, …, one of ten classes.",
            f"Trained on [Fashion-MNIST]({HOMEPAGE}). The alias `{CHAMPION}` is the version to use,"
            " the best by what was measured.",
            use_it(name),
        ]
    )


def use_it(name: str) -> str:
    """Return the Python lines that name a picture by the champion of the registered model."""
    return f"""\
```python
import mlflow

model = mlflow.pyfunc.load_model("models:/{name}@{CHAMPION}")
print(model.predict("boot.jpg"))
```"""


def model_card(run: Run, dataset: FashionMNIST, measured: Measurement, metric: str) -> str:
    """Describe a version in Markdown, after Mitchell et al., "Model Cards" (arXiv:1810.03993).

    Args:
        run: the run that trained the model.
        dataset: the verified dataset.
        measured: the measurement of the stored model.
        metric: what the run was selected by.

    Raises:
        RegistryError: the run was not logged by this project.
    """
    try:
        return _model_card(run, dataset, measured, metric)
    except (KeyError, ValueError) as error:  # a parameter is missing, or not a number
        raise RegistryError(
            f"run {run.info.run_id} lacks parameters that training runs of this project log"
        ) from error


def _model_card(run: Run, dataset: FashionMNIST, measured: Measurement, metric: str) -> str:
    params = run.data.params
    predicted = measured.test.logits.argmax(dim=1)
    pairs = tables.confused_pairs(tables.confusion_matrix(dataset.test.labels, predicted), top=5)
    confused = "\n".join(f"- {pair}" for pair in pairs)
    rows = [[name, f"{value:.4f}"] for name, value in measured.metrics.items()]
    selection = (
        "**on the test set**, so that its test metrics are optimistic"
        if metric.startswith("test_")
        else "on validation data"
    )
    test_accuracy = measured.metrics["test_accuracy"]
    paragraphs = [
        # Plain text: the registry's list shows the beginning as it is.
        f"{params['model']} for Fashion-MNIST: {test_accuracy:.2%} test accuracy.",
        f"**Data.** [Fashion-MNIST]({HOMEPAGE}), {TRAIN_SIZE - int(params['val_size']):,} training"
        f" images, {int(params['val_size']):,} held out for validation (stratified, seed"
        f" {params['split_seed']}), {len(dataset.test):,} test images; all verified by SHA-256.",
        f"**Recipe.** {params['epochs']} epochs of {params['optimizer']}, lr {params['lr']}, batch"
        f" {params['batch_size']}, seed {params['seed']}, {params['hidden_units']} hidden units,"
        f" {int(params['num_parameters']):,} parameters. Run `{run.info.run_id}`.",
        f"**Metrics.** Selected by {metric}, {selection}. Measured at registration from the stored"
        " model; the run had evaluated the test set once.",
        markdown.table(["metric", "value"], rows),
        f"**Most confused on the test set.**\n\n{confused}",
        "**Input and output.** By `mlflow.pyfunc` and `mlflow models serve`: pictures; class (one"
        f" of {', '.join(CLASSES)}), calibrated probability, and whether the ground is cluttered."
        " By `mlflow.pytorch`: float32 images of shape (N, 1, 28, 28) in [0, 1], light on black;"
        " logits of shape (N, 10).",
        "**Intended use.** Teaching, and comparing methods on this benchmark.",
        "**Limits.** It predicts one of ten classes for any input, and was trained on centred"
        " catalogue pictures of 28x28 pixels; accuracy on photographs, which are converted"
        " to such pictures, is lower.",
    ]
    return markdown.text(paragraphs)
