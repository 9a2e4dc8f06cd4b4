"""Describe the registered model and its versions in Markdown."""

from mlflow.entities import Run

from fashion.analysis import markdown, tables
from fashion.data.dataset import Dataset
from fashion.errors import RegistryError, printable, some
from fashion.settings.task import CHAMPION, FASHION_MNIST, HOMEPAGE, Task
from fashion.tracking.evidence import Measurement


def registered_model(name: str, task: Task = FASHION_MNIST) -> str:
    """Describe the registered model `name`; MLflow's list shows the beginning as plain text."""
    names = f"Names the class of a picture, one of {len(task.classes)}: {_classes(task)}."
    if task.name == FASHION_MNIST.name:
        names = "Names the garment in a picture: T-shirt, trouser, pullover, …, one of ten classes."
    return markdown.text(
        [
            names,
            f"Trained on {_title(task)}. The alias `{CHAMPION}` is the version to use, the best by"
            " what was measured.",
            use_it(name, task),
        ]
    )


def use_it(name: str, task: Task = FASHION_MNIST) -> str:
    """Return the Python lines that name a picture by the champion of the registered model."""
    picture = "boot.jpg" if task.name == FASHION_MNIST.name else "picture.jpg"
    return f"""\
```python
import mlflow

model = mlflow.pyfunc.load_model("models:/{name}@{CHAMPION}")
print(model.predict("{picture}"))
```"""


def model_card(run: Run, dataset: Dataset, measured: Measurement, metric: str) -> str:
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


def _model_card(run: Run, dataset: Dataset, measured: Measurement, metric: str) -> str:
    params = run.data.params
    predicted = measured.test.logits.argmax(dim=1)
    task, val_size = dataset.task, int(params["val_size"])
    confusion = tables.confusion_matrix(dataset.test.labels, predicted, task.classes)
    pairs = tables.confused_pairs(confusion, top=5)
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
        f"{params['model']} for {printable(task.title)}: {test_accuracy:.2%} test accuracy.",
        _data(dataset, val_size, params["split_seed"]),
        f"**Recipe.** {params['epochs']} epochs of {params['optimizer']}, lr {params['lr']}, batch"
        f" {params['batch_size']}, seed {params['seed']}, {params['hidden_units']} hidden units,"
        f" {int(params['num_parameters']):,} parameters. Run `{run.info.run_id}`.",
        f"**Metrics.** Selected by {metric}, {selection}. Measured at registration from the stored"
        " model; the run had evaluated the test set once.",
        markdown.table(["metric", "value"], rows),
        f"**Most confused on the test set.**\n\n{confused}",
        _interface(task),
        *_use(task),
    ]
    return markdown.text(paragraphs)


def _data(dataset: Dataset, val_size: int, split_seed: str) -> str:
    task = dataset.task
    if dataset.validation is not None:
        training, how = len(dataset.train), "set apart in the data"
    else:
        training, how = len(dataset.train) - val_size, f"stratified, seed {split_seed}"
    held_out = f", {val_size:,} held out for validation ({how})" if val_size else ""
    text = (
        f"**Data.** {_title(task)}, {training:,} training images{held_out},"
        f" {len(dataset.test):,} test images"
    )
    if task.name == FASHION_MNIST.name:
        return f"{text}; all verified by SHA-256."
    source = f" Source: `{printable(dataset.train.source)}`." if dataset.train.source else ""
    return (
        f"{text}, of {task.size} (channels, height, width).{source} Digest of the test images:"
        f" `{dataset.test.digest}`."
    )


def _interface(task: Task) -> str:
    pictures, light = "pictures of any size, which are resized as in training", ""
    answers = " and calibrated probability"
    if task.extract:
        pictures, light = "pictures", ", light on black"
        answers = ", calibrated probability, and whether the ground is cluttered"
    channels, height, width = task.shape
    return (
        f"**Input and output.** By `mlflow.pyfunc` and `mlflow models serve`: {pictures}; class"
        f" (one of {_classes(task)}){answers}. By `mlflow.pytorch`: float32"
        f" images of shape (N, {channels}, {height}, {width}) in [0, 1]{light}; logits of shape"
        f" (N, {len(task.classes)})."
    )


def _use(task: Task) -> list[str]:
    count = "ten" if len(task.classes) == 10 else len(task.classes)
    limits = f"**Limits.** It predicts one of {count} classes for any input"
    size = "x".join(map(str, task.shape[1:]))
    if task.name == FASHION_MNIST.name:
        return [
            "**Intended use.** Teaching, and comparing methods on this benchmark.",
            f"{limits}, and was trained on centred catalogue pictures of {size} pixels; accuracy on"
            " photographs, which are converted to such pictures, is lower.",
        ]
    return [
        f"{limits}, and was trained on pictures like those of the data, of {size} pixels; accuracy"
        " on others, which are converted to that size, may be lower. Pictures that resemble each"
        " other in the training and the test set, of one scene for example, make the test metrics"
        " optimistic."
    ]


def _title(task: Task) -> str:
    return (
        f"[{task.title}]({HOMEPAGE})" if task.name == FASHION_MNIST.name else printable(task.title)
    )


def _classes(task: Task) -> str:
    return printable(some(task.classes))
