"""Train models as MLflow runs, and resume interrupted runs."""

import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from torch import nn

from fashion import advice
from fashion.analysis import drawing, markdown, predictions, summary, tables
from fashion.analysis.calibration import fit_temperature
from fashion.analysis.colors import color_of
from fashion.analysis.pictures import to_compare
from fashion.analysis.predictions import Predictions
from fashion.data.dataset import Dataset, Subset
from fashion.data.sources import load_for
from fashion.errors import DataError, SettingError
from fashion.settings.experiment import Experiment, Recipe
from fashion.settings.metrics import CALIBRATED_ECE, ECE, TEMPERATURE
from fashion.settings.tags import (
    CHANGES_TAG,
    CODE_TAG,
    CONTINUED_TAG,
    CONTINUES_TAG,
    ENVIRONMENT_TAGS,
    MODEL_TAG,
)
from fashion.tracking import checkpoint, runs, store
from fashion.tracking.checkpoint import CheckpointError
from fashion.tracking.environment import MAY_CHANGE, code_digest, differences, environment
from fashion.tracking.models import log_model
from fashion.tracking.records import (
    dataset_of,
    log_lineage,
    log_params,
    log_per_class,
    log_pictures,
)
from fashion.training import distributed, evaluation, loop
from fashion.training.build import build

SETTINGS_ARTIFACT = "settings.yaml"

logger = logging.getLogger(__name__)


def train(
    experiment: Experiment,
    dataset: Dataset,
    *,
    name: str = "",
    tags: Mapping[str, str] | None = None,
    nested: bool = False,
    system_metrics: bool = False,
    begun: Callable[[str], None] = lambda _: None,
) -> str:
    """Train one model and log it as one MLflow run.

    With several processes, rank 0 calls this and the others call `train_as_worker`. A checkpoint
    is written after each epoch, for `resume`. If the tracking store becomes unreachable, training
    continues and the missing metrics are logged later.

    Args:
        experiment: what to train.
        dataset: the verified dataset.
        name: name of the run; the model's if empty.
        tags: tags of the run.
        nested: make the run a child of the active one.
        system_metrics: sample CPU, memory and network use during the run.
        begun: called with the run's id, before anything is trained.

    Returns:
        The id of the finished run.

    Raises:
        TrackingError: the tracking store cannot be used at the start, or at the end after all of
            MLflow's retries; the trained model is then saved for `replay`.
        FileError: a checkpoint cannot be written.
    """
    model, params = build(experiment, dataset.split(experiment.val_size)[0])
    with runs.running(
        name=name or experiment.model, tags=tags, nested=nested, system_metrics=system_metrics
    ) as run:
        record = {
            "experiment": experiment.to_dict(),
            "params": params,
            "environment": environment(params),
            "changes": [],
            "epochs": [],
            "trained": False,
            "state": None,
        }
        begun(run.info.run_id)
        checkpoint.save(run.info.run_id, record)
        with _resumable(run.info.run_id, nested):
            _complete(run, record, experiment, model, dataset)
    return run.info.run_id


def train_as_worker(data_dir: str) -> None:
    """Take part in all of rank 0's training runs, without an MLflow run and without output.

    Rank 0 has shared the settings of the first, after it had loaded their data.
    """
    asked = experiment_of(distributed.share(None))
    dataset = load_for(asked, data_dir)
    for _run in range(distributed.share(None)):
        record = distributed.share(None)
        experiment = experiment_of(record["experiment"])
        training, validation = dataset.split(experiment.val_size)
        model, _ = build(experiment, training)
        for _ in loop.train(model, training, experiment.recipe, validation, record["state"]):
            pass


def resume(
    run_id: str,
    dataset: Dataset,
    given: Mapping[str, Any] | None = None,
    *,
    nested: bool = False,
    system_metrics: bool = False,
    allow_changes: bool = False,
) -> str:
    """Resume a run from its last checkpoint; it ends as if it had never been interrupted.

    Args:
        run_id: id of the run, or "latest" for the last one on this machine.
        dataset: the verified dataset.
        given: settings that must equal those of the run. With a constant learning rate, epochs may
            differ: as MLflow's parameters cannot be changed, the training continues as a new run.
        nested: the run is a child of the active one.
        system_metrics: sample CPU, memory and network use during the run.
        allow_changes: continue although the processor, torch or this code has changed, and tag the
            run with the changes; the bits may then differ from those of an uninterrupted run.

    Returns:
        The id of the finished run.

    Raises:
        CheckpointError: the run has no checkpoint here, is in use by another process, or was
            started with other settings, other code, another torch or on another kind of machine.
        TrackingError, FileError: as for `train`.
    """
    if run_id == "latest":
        run_id = unfinished(run_id)
    else:
        _check_known(run_id)
    with checkpoint.held(run_id):
        record = checkpoint.load(run_id)
        experiment = experiment_of(record["experiment"])
        settings, given = experiment.to_dict(), given or {}
        extended = given.get("epochs", settings["epochs"]) != settings["epochs"]
        # With other changes beside it, the number of epochs is in their list.
        if not extended or any(settings.get(name) != given[name] for name in {*given} - {"epochs"}):
            refuse_changes(run_id, settings, given)
        if extended:
            experiment = _with_epochs(run_id, record, experiment, given["epochs"])
        model, params = build(experiment, dataset.split(experiment.val_size)[0])
        if not record["trained"]:
            facts = {name: params[name] for name in params.keys() - set(MAY_CHANGE)}
            refuse_changes(run_id, record["params"], facts)
            _accept_environment(run_id, record, params, allow_changes)
        with ExitStack() as stack:
            if extended:
                run_id = _successor(run_id, record, stack)
            run = stack.enter_context(
                runs.running(run_id, nested=nested, system_metrics=system_metrics)
            )
            if not nested:
                runs.nest_launcher_run(run_id)
            with _resumable(run_id, nested):
                _complete(run, record, experiment, model, dataset)
    return run_id


def _with_epochs(
    run_id: str, record: dict[str, Any], experiment: Experiment, epochs: int
) -> Experiment:
    """Return the experiment with another number of epochs, which the checkpoint then has too.

    Raises:
        CheckpointError: the epochs so far would have been others.
    """
    recipe, trained = experiment.recipe, len(record["epochs"])
    if recipe.schedule != "constant":
        raise CheckpointError(
            f"run {run_id} cannot be resumed with {epochs} epochs: the learning rates of its"
            f" {recipe.schedule} schedule depend on their number, {recipe.epochs}"
        )
    if epochs < trained:
        raise CheckpointError(f"run {run_id} has trained {trained} epochs already, not {epochs}")
    experiment = replace(experiment, recipe=replace(recipe, epochs=epochs))
    record |= {
        "experiment": experiment.to_dict(),
        "params": record["params"] | {"epochs": epochs},
        "trained": False,
    }
    return experiment


def _successor(run_id: str, record: Mapping[str, Any], stack: ExitStack) -> str:
    """Move a checkpoint to a new run, which `stack` locks; return its id."""
    client = MlflowClient()
    with store.refusals(store.START_IT):
        before = client.get_run(run_id)
        inherited = {
            name: value
            for name, value in before.data.tags.items()
            if name.startswith(("mlflow.user", "mlflow.source."))
        }
        successor = client.create_run(
            before.info.experiment_id,
            run_name=before.info.run_name,
            tags={**inherited, CONTINUES_TAG: run_id},
        ).info.run_id
        stack.enter_context(checkpoint.held(successor))
        checkpoint.save(successor, record)
        client.set_tag(run_id, CONTINUED_TAG, successor)
    checkpoint.forget(run_id)
    return successor


@contextmanager
def _resumable(run_id: str, nested: bool) -> Iterator[None]:
    """Of a run by itself, tell the workers that there is one, and the user how to resume it."""
    if not nested:
        distributed.share(1)
    try:
        yield
    except KeyboardInterrupt:
        if not nested:
            print_advice("train", run_id)
        raise


def print_advice(entry_point: str, run_id: str) -> None:
    """Print the command that continues an interrupted run."""
    processes = distributed.world_size()
    several = {"nproc": processes} if processes > 1 else {}
    with suppress(OSError):  # the terminal may be closed
        sys.stdout.flush()  # a line that was interrupted comes first
        again = advice.command(entry_point, **several, resume=run_id)
        print(f"Interrupted; continue with {again}", file=sys.stderr)


def unfinished(run_id: str) -> str:
    """Return the id of the run to resume: the parent, if the run is part of an unfinished group.

    Args:
        run_id: id of a run, or "latest" for the last one on this machine.

    Raises:
        CheckpointError: this machine has no such run.
        TrackingError: the tracking store cannot be used.
    """
    known = [run_id] if run_id != "latest" else checkpoint.unfinished()
    with store.refusals(store.START_IT), store.single_attempt():
        for each in known:
            found = runs.present(each)
            parent = found.data.tags.get(MLFLOW_PARENT_RUN_ID) if found else None
            if parent and checkpoint.is_group(parent) and runs.present(parent):
                return parent
            if found and (checkpoint.exists(each) or checkpoint.is_group(each)):
                return each
    raise CheckpointError(f"this machine has no unfinished run of this tracking store: {run_id}")


def _check_known(run_id: str) -> None:
    with store.refusals(store.START_IT), store.single_attempt():
        known = runs.present(run_id)
    if not known:
        raise CheckpointError(
            f"this machine has no unfinished run of this tracking store: {run_id}"
        )


def replay(load: Callable[[Experiment], Dataset]) -> Iterator[tuple[str, str]]:
    """Log the runs that were trained but could not be logged; yield each run's id and outcome.

    Runs of other tracking stores are passed over.

    Args:
        load: returns the data of an experiment.

    Raises:
        TrackingError: the tracking store still cannot be used.
    """
    for run_id in filter(checkpoint.exists, checkpoint.unfinished()):
        try:
            with store.refusals(store.START_IT), store.single_attempt():
                known = runs.present(run_id)
            if not known:
                continue
            record = checkpoint.load(run_id)
            if not record["trained"]:
                outcome = (
                    f"training unfinished; continue with {advice.command('train', resume=run_id)}"
                )
            else:
                resume(run_id, load(experiment_of(record["experiment"])))
                outcome = "logged"
        except (CheckpointError, DataError, SettingError) as error:
            outcome = str(error)
        yield run_id, outcome


def experiment_of(settings: Mapping[str, Any]) -> Experiment:
    """Return the experiment with the settings that a checkpoint holds.

    Raises:
        CheckpointError: another version of this project wrote it.
    """
    try:
        return Experiment.from_options(settings)
    except SettingError as error:
        raise CheckpointError(
            f"the run was started with another version of this project ({error})"
        ) from error


def refuse_changes(run_id: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise CheckpointError with what differs from `before` in `now`, if anything does."""
    changes = [
        f"{name} was {before.get(name)}, is {value}"
        for name, value in now.items()
        # The Python version does not change the results.
        if before.get(name) != value and name != "python_version"
    ]
    if changes:
        raise CheckpointError(f"run {run_id} cannot be resumed with changes: {'; '.join(changes)}")


def refuse_differences(run_id: str, changes: Sequence[str], allowed: bool) -> None:
    """Raise CheckpointError with the changes around a run, unless they are allowed.

    Args:
        run_id: the run.
        changes: the result of `environment.differences`.
        allowed: whether the user has allowed them.
    """
    if changes and not allowed:
        raise CheckpointError(
            f"run {run_id} would end with other bits: {'; '.join(changes)}. Undo that, or continue"
            " with --allow-changes (for mlflow run: -P allow_changes=true)"
        )


def _accept_environment(
    run_id: str, record: dict[str, Any], params: Mapping[str, Any], allow_changes: bool
) -> None:
    """Note in the checkpoint what has changed around the run, if that is allowed."""
    now = environment(params)
    changes = differences(record.get("environment"), now)
    refuse_differences(run_id, changes, allow_changes)
    after = f"after epoch {len(record['epochs'])}"
    record["changes"] = [*record.get("changes", []), *(f"{after}: {each}" for each in changes)]
    record["environment"] = now


def _complete(
    run: Run,
    record: dict[str, Any],
    experiment: Experiment,
    model: nn.Module,
    dataset: Dataset,
) -> None:
    """Do the remaining work of a run. Logging anything a second time changes nothing."""
    recipe = experiment.recipe
    training, validation = dataset.split(experiment.val_size)
    with store.refusals(store.START_IT):
        mlflow.set_tags(
            {MODEL_TAG: experiment.model, runs.COLOR_TAG: color_of(experiment.model)}
            | {name: str(record["params"][name]) for name in ENVIRONMENT_TAGS}
            | {CODE_TAG: code_digest()}
        )
        if record.get("changes"):
            mlflow.set_tag(CHANGES_TAG, "; ".join(record["changes"]))
        params = record["params"]
        log_params(run, {name: params[name] for name in params.keys() - set(ENVIRONMENT_TAGS)})
        log_lineage(training, validation, dataset.test)
    # Before training: a store of artifacts that refuses files would refuse the model, hours later.
    with store.refusals("its artifacts cannot be stored"):
        mlflow.log_dict(record["experiment"], SETTINGS_ARTIFACT)
    logged = _fit(run, record, experiment, model, training, validation)

    epochs = record["epochs"]
    history = pd.DataFrame([epoch["metrics"] for epoch in epochs], range(1, len(epochs) + 1))
    final_epoch = _final_epoch(epochs, recipe)
    train_seconds = sum(epoch["seconds"] for epoch in epochs)
    # Test the model as it will be loaded: on the CPU, with PyTorch's kernels.
    model.to("cpu")
    test = evaluation.evaluate(model, dataset.test)
    print(summary.final(test), flush=True)
    calibration = tables.calibration(dataset.test.labels, test.logits)
    answers = {"test": predictions.of(dataset.test, test)}
    temperature = 1.0
    if "validation" in record:
        validated = answers["validation"] = Predictions(**record["validation"])
        temperature = fit_temperature(validated.labels, validated.logits)
    calibrated = tables.calibration(dataset.test.labels, test.logits / temperature)
    final = {
        **test.metrics("test"),
        ECE: tables.expected_calibration_error(calibration),
        CALIBRATED_ECE: tables.expected_calibration_error(calibrated),
        TEMPERATURE: temperature,
        "train_seconds": train_seconds,
        "images_per_second": len(training) * len(epochs) / train_seconds,
    }
    extra = _tta(model, validation, dataset.test) if experiment.tta else {}
    metrics = epochs[final_epoch - 1]["metrics"]
    if recipe.patience:
        # MLflow shows the value that was logged last: it must belong to the restored weights.
        extra |= {**metrics, "best_epoch": final_epoch}
    at = {"step": history.index[-1], "timestamp": epochs[-1]["timestamp"] + 1}
    with tempfile.TemporaryDirectory() as folder:
        pairs, drawings = summary.write_files(
            Path(folder),
            experiment.model,
            recipe.seed,
            history,
            training,
            dataset.test,
            test,
            calibration,
        )
        predictions.write(Path(folder, predictions.FILE), answers)
        with store.refusals(f"the trained model is saved; log it with {advice.command('replay')}"):
            with drawing.drawn(drawings):
                _log_epochs(epochs, logged)
                model_id = log_model(run, experiment.title, model, dataset.test, test, temperature)
                _log_final(
                    final,
                    epochs[final_epoch - 1],
                    final_epoch,
                    model_id,
                    validation,
                    dataset.test,
                    at["timestamp"],
                )
                mlflow.log_metrics(extra, **at)
            mlflow.log_artifacts(folder)
            log_pictures(run, to_compare(Path(folder)))
            log_per_class(run, dataset.test, test)
            text = summary.note(
                experiment.model,
                record["params"]["num_parameters"],
                recipe,
                metrics | final,
                pairs,
                advice.command("train", config=f"runs:/{run.info.run_id}"),
            )
            MlflowClient().set_logged_model_tags(model_id, {MLFLOW_RUN_NOTE: text})
            picture = markdown.picture(run.info.run_id, "Confusion matrix", "confusion_matrix.png")
            mlflow.set_tag(MLFLOW_RUN_NOTE, f"{text}\n{picture}\n")


def _fit(
    run: Run,
    record: dict[str, Any],
    experiment: Experiment,
    model: nn.Module,
    training: Subset,
    validation: Subset | None,
) -> int:
    """Train from the checkpoint `record` to the end, saving and logging each epoch.

    Returns:
        The number of epochs that were logged successfully.
    """
    recipe, epochs, logged = experiment.recipe, record["epochs"], 0
    if not record["trained"]:
        held_out = 0 if validation is None else len(validation)
        print(summary.header(experiment, record["params"], training, held_out), flush=True)
    if epochs:
        print(f"Resuming run {run.info.run_id} after epoch {len(epochs)}", flush=True)
    distributed.share({key: record[key] for key in ("experiment", "state")})
    for epoch in loop.train(model, training, recipe, validation, record["state"]):
        epochs.append(epoch.summary())
        record["state"] = epoch.state
        is_final = _final_epoch(epochs, recipe) == epoch.number
        if validation is not None and epoch.validation is not None and is_final:
            record["validation"] = vars(predictions.of(validation, epoch.validation))
        # Save before logging, so that no logged epoch is trained a second time.
        checkpoint.save(run.info.run_id, record)
        line = summary.progress(epoch.number, recipe.epochs, epoch.metrics, epoch.seconds)
        print(line, flush=True)
        try:
            with store.single_attempt():
                logged = _log_epochs(epochs, logged)
        except Exception as error:  # as in store.refusals
            logger.warning(
                "Cannot log to the tracking store (%s): training continues, %d epochs not logged",
                store.reason(error),
                len(epochs) - logged,
            )
    record["trained"] = True
    checkpoint.save(run.info.run_id, record)
    return logged


def _final_epoch(epochs: Sequence[Mapping[str, Any]], recipe: Recipe) -> int:
    """Return the epoch whose weights the model has if training stops after `epochs`."""
    if not recipe.patience:
        return len(epochs)
    losses = [epoch["metrics"]["val_loss"] for epoch in epochs]
    losses = [math.inf if math.isnan(loss) else loss for loss in losses]
    return losses.index(min(losses)) + 1


def _log_epochs(epochs: Sequence[Mapping[str, Any]], logged: int) -> int:
    """Log the metrics of all epochs after the first `logged`; return the number of epochs.

    MLflow stores a metric only once for the same step, value and timestamp.
    """
    for number, epoch in enumerate(epochs[logged:], logged + 1):
        mlflow.log_metrics(epoch["metrics"], step=number, timestamp=epoch["timestamp"])
    return len(epochs)


def _log_final(
    final: Mapping[str, float],
    epoch: Mapping[str, Any],
    step: int,
    model_id: str,
    validation: Subset | None,
    test: Subset,
    timestamp: int,
) -> None:
    """Log the metrics of the final weights, linked to the model and to the images of each.

    The UI and `search_logged_models` rank models by metrics that are linked to both.
    """
    if validation is not None:
        # As `_log_epochs` has logged them: MLflow stores them only once.
        mlflow.log_metrics(
            {name: value for name, value in epoch["metrics"].items() if name.startswith("val_")},
            step=step,
            timestamp=epoch["timestamp"],
            model_id=model_id,
            dataset=dataset_of(validation),
        )
    on_test = {name: value for name, value in final.items() if name.startswith("test_")}
    mlflow.log_metrics(on_test, model_id=model_id, dataset=dataset_of(test), timestamp=timestamp)
    others = {name: value for name, value in final.items() if name not in on_test}
    mlflow.log_metrics(others, model_id=model_id, timestamp=timestamp)


def _tta(model: nn.Module, validation: Subset | None, test: Subset) -> dict[str, float]:
    metrics = {}
    for name, subset in (("val", validation), ("test", test)):
        if subset is not None:
            answers = evaluation.evaluate(model, subset, tta=True)
            metrics[f"{name}_accuracy_tta"] = answers.accuracy
            metrics[f"{name}_loss_tta"] = answers.loss
    return metrics
