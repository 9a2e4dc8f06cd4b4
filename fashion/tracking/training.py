"""Train models as MLflow runs, and resume interrupted runs."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from torch import nn

from fashion import advice
from fashion.analysis import predictions, summary
from fashion.analysis.colors import color_of
from fashion.data.dataset import Dataset, Subset
from fashion.data.sources import load_for
from fashion.errors import DataError, SettingError
from fashion.settings.experiment import Experiment
from fashion.settings.tags import (
    CHANGES_TAG,
    CODE_TAG,
    CONTINUED_TAG,
    CONTINUES_TAG,
    ENVIRONMENT_TAGS,
    MODEL_TAG,
)
from fashion.tracking import checkpoint, configuration, results, resumption, runs, store
from fashion.tracking.checkpoint import CheckpointError
from fashion.tracking.environment import MAY_CHANGE, code_digest, environment
from fashion.tracking.records import log_epochs, log_lineage, log_params
from fashion.training import distributed, loop
from fashion.training.build import build

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
    asked = resumption.experiment_of(distributed.share(None))
    dataset = load_for(asked, data_dir)
    for _run in range(distributed.share(None)):
        record = distributed.share(None)
        experiment = resumption.experiment_of(record["experiment"])
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
        run_id = resumption.unfinished(run_id)
    else:
        resumption.check_known(run_id)
    with checkpoint.held(run_id):
        record = checkpoint.load(run_id)
        experiment = resumption.experiment_of(record["experiment"])
        settings, given = experiment.to_dict(), given or {}
        extended = given.get("epochs", settings["epochs"]) != settings["epochs"]
        # With other changes beside it, the number of epochs is in their list.
        if not extended or any(settings.get(name) != given[name] for name in {*given} - {"epochs"}):
            resumption.refuse_changes(run_id, settings, given)
        if extended:
            experiment = _with_epochs(run_id, record, experiment, given["epochs"])
        model, params = build(experiment, dataset.split(experiment.val_size)[0])
        if not record["trained"]:
            facts = {name: params[name] for name in params.keys() - set(MAY_CHANGE)}
            resumption.refuse_changes(run_id, record["params"], facts)
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
            resumption.print_advice("train", run_id)
        raise


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
            if not resumption.is_known(run_id):
                continue
            record = checkpoint.load(run_id)
            if not record["trained"]:
                outcome = (
                    f"training unfinished; continue with {advice.command('train', resume=run_id)}"
                )
            else:
                resume(run_id, load(resumption.experiment_of(record["experiment"])))
                outcome = "logged"
        except (CheckpointError, DataError, SettingError) as error:
            outcome = str(error)
        yield run_id, outcome


def _accept_environment(
    run_id: str, record: dict[str, Any], params: Mapping[str, Any], allow_changes: bool
) -> None:
    """Note in the checkpoint what has changed around the run, if that is allowed."""
    before, now, after = record.get("environment"), environment(params), len(record["epochs"])
    changes = resumption.accepted_changes(run_id, before, now, f"epoch {after}", allow_changes)
    record["changes"] = [*record.get("changes", []), *changes]
    record["environment"] = now


def _complete(
    run: Run,
    record: dict[str, Any],
    experiment: Experiment,
    model: nn.Module,
    dataset: Dataset,
) -> None:
    """Do the remaining work of a run. Logging anything a second time changes nothing."""
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
        mlflow.log_dict(record["experiment"], configuration.SETTINGS)
    logged = _fit(run, record, experiment, model, training, validation)
    results.log(run, record, experiment, model, dataset, logged)


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
        is_final = results.final_epoch(epochs, recipe.patience) == epoch.number
        if validation is not None and epoch.validation is not None and is_final:
            record["validation"] = vars(predictions.of(validation, epoch.validation))
        # Save before logging, so that no logged epoch is trained a second time.
        checkpoint.save(run.info.run_id, record)
        line = summary.progress(epoch.number, recipe.epochs, epoch.metrics, epoch.seconds)
        print(line, flush=True)
        try:
            with store.single_attempt():
                logged = log_epochs(epochs, logged)
        except Exception as error:  # as in store.refusals
            logger.warning(
                "Cannot log to the tracking store (%s): training continues, %d epochs not logged",
                store.reason(error),
                len(epochs) - logged,
            )
    record["trained"] = True
    checkpoint.save(run.info.run_id, record)
    return logged
