"""Train a logged model again from its commit, lock and settings, in an environment of its own."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

from fashion.analysis.reproduction import Result
from fashion.errors import DeviceError, FashionError, printable
from fashion.settings.experiment import Conditions
from fashion.settings.option import as_typed, options_of
from fashion.settings.tags import CHANGES_TAG, CODE_TAG
from fashion.tracking import archive, checkout, configuration
from fashion.tracking.answers import Source
from fashion.training.build import resolve_device

CONDITIONS = (*options_of(Conditions), CODE_TAG)
# From this line on, a training prints where to see its run.
END_OF_TRAINING = "Logged as run"
# Run by the commit's own MLflow, as another version may not read its store.
READ_STORE = """
import json, mlflow, sys
(found,) = mlflow.search_runs(
    search_all_experiments=True, filter_string="status = 'FINISHED'", output_format="list"
)
run = mlflow.get_run(found.info.run_id)
model = f"models:/{run.outputs.model_outputs[-1].model_id}"
path = mlflow.artifacts.download_artifacts(model, dst_path="trained")
data = run.data
result = {"model": path, "metrics": data.metrics, "params": data.params, "tags": data.tags}
with open("result.json", "w") as file:
    json.dump(result, file)
"""


class ReproductionError(FashionError):
    """A model cannot be trained again."""


@dataclass(frozen=True)
class Plan:
    """How to train a model again.

    Attributes:
        source: the model.
        commit: the commit that its run was trained at.
        settings: the options of the command that trains it, by name.
        python: the version of Python, such as 3.11; empty if its run did not record it.
        then: what its run gave.
        remarks: why the weights may differ, as far as that is known before.
    """

    source: Source
    commit: str
    settings: Mapping[str, str]
    python: str
    then: Result
    remarks: list[str]


def plan(source: Source) -> Plan:
    """Check that a model can be trained again, before anything is done.

    Raises:
        RegistryError: the model cannot be loaded.
        ReproductionError: no run, commit or settings of it are known, or a file is missing.
        CheckoutError: as for `checkout.check`.
        DocumentError, CompareError: as for `configuration.read`.
    """
    with archive.fetched(source.uri) as stored:
        weights = stored.load().state_dict()
    run = source.run
    if run is None:
        raise ReproductionError(
            f"{source.name} cannot be trained again: it is not the model of a training run in this"
            " tracking store"
        )
    commit = run.data.tags.get(MLFLOW_GIT_COMMIT, "")
    if not commit:
        raise ReproductionError(
            f"{source.name} cannot be trained again: its run {run.info.run_id} has recorded no git"
            " commit, as it was trained outside a clone, or without git"
        )
    checkout.check(commit)
    settings = configuration.read(f"{configuration.RUNS}{run.info.run_id}")
    conditions = _conditions(run.data.params, run.data.tags)
    device, remarks = _device(conditions.get("device_type", "cpu"))
    if changes := run.data.tags.get(CHANGES_TAG):
        remarks.append(f"its run was resumed with changes ({printable(changes)})")
    options = {name: as_typed(value) for name, value in settings.items()} | {"device": device}
    if options.get("pretrained", "") not in ("", "default"):
        weights_file = Path(options["pretrained"]).absolute()
        if not weights_file.is_file():
            raise ReproductionError(f"its initial weights, {weights_file}, are not a file")
        options["pretrained"] = str(weights_file)
    if conditions.get("nproc", "1") != "1":
        options["nproc"] = conditions["nproc"]
    return Plan(
        source,
        commit,
        options,
        ".".join(conditions.get("python_version", "").split(".")[:2]),
        Result(weights, run.data.metrics, conditions),
        remarks,
    )


def train(plan: Plan, data_dir: Path, show: Callable[[str], None]) -> Result:
    """Train a model again, in a temporary folder, and return what that gave.

    Args:
        plan: the result of `plan`.
        data_dir: directory of the dataset.
        show: called with each line that the training prints.

    Raises:
        CheckoutError: the commit cannot be checked out or installed, or the training fails.
        RegistryError: the trained model cannot be loaded.
    """
    with checkout.checked_out(plan.commit) as folder:
        python = str(checkout.install(folder, plan.python))
        (folder / "tmp").mkdir()
        variables = checkout.clean(os.environ) | {
            "TMPDIR": str(folder / "tmp"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/reproduced.db",
            "FASHION_STATE_DIR": str(folder / "state"),
            "MLFLOW_LOGGING_LEVEL": "WARNING",
        }
        if threads := plan.then.conditions.get("threads"):
            variables["OMP_NUM_THREADS"] = threads
        options = [
            word
            for name, value in {**plan.settings, "data_dir": str(data_dir)}.items()
            for word in (f"--{name.replace('_', '-')}", value)
        ]
        command = [python, "-m", "entrypoints.train", *options]
        checkout.run("train again", command, folder, variables, _training_lines(show))
        checkout.run("read the result", [python, "-c", READ_STORE], folder, variables)
        result = json.loads((folder / "result.json").read_text())
        with archive.fetched(result["model"]) as stored:
            weights = stored.load().state_dict()
    return Result(weights, result["metrics"], _conditions(result["params"], result["tags"]))


def _training_lines(show: Callable[[str], None]) -> Callable[[str], None]:
    """Show the lines of a training, without those about its tracking store, which is deleted."""
    ended = False

    def show_unless_ended(line: str) -> None:
        nonlocal ended
        ended = ended or line.startswith(END_OF_TRAINING)
        if not ended:
            show(line)

    return show_unless_ended


def _conditions(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    # Earlier versions logged what are tags now as parameters.
    logged = {**tags, **params}
    return {name: logged[name] for name in CONDITIONS if name in logged}


def _device(trained_on: str) -> tuple[str, list[str]]:
    """Return the device to train on, and what that means for the weights."""
    try:
        resolve_device(trained_on)
    except DeviceError as error:
        return "auto", [f"it was trained on {trained_on}: {error}"]
    remark = f"it was trained on {trained_on}, where equal trainings may round differently"
    return trained_on, [] if trained_on == "cpu" else [remark]
