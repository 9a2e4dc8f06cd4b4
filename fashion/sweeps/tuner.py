"""Search for settings with Ray Tune: on this machine, or on the cluster that RAY_ADDRESS names.

Workers train; they know nothing of MLflow and never see a test image. The process that started the
sweep logs what they report.
"""

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import ray
import torch
from mlflow.entities import Run
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from fashion.data.dataset import Subset
from fashion.settings.experiment import Experiment
from fashion.sweeps.plan import METRIC, MODE, Plan, Range, Space
from fashion.sweeps.progress import TrialTable
from fashion.sweeps.trials import Children, Outcome, SweepError
from fashion.tracking import store
from fashion.training import loop
from fashion.training.build import build

STATE = "state.pt"
# Each time that many times fewer trials go on, with that many times more epochs (Li et al.,
# arXiv:1810.05934); Ray's own default.
REDUCTION_FACTOR = 4

logger = logging.getLogger(__name__)

Resolve = Callable[[Mapping[str, Any]], Experiment]


def run(
    parent: Run,
    space: Space,
    plan: Plan,
    training: Subset,
    validation: Subset,
    storage: str,
    resolve: Resolve = Experiment.from_options,
) -> list[Outcome]:
    """Train trials on the `cluster` until all have ended; go on with those of an earlier call.

    Args:
        parent: the sweep's MLflow run, open.
        space: what to search.
        plan: how.
        training: what trials train on.
        validation: what they are compared on.
        storage: a folder that every node sees, or an address that Ray understands, for the state
            of the sweep.
        resolve: turns a configuration into what to train.

    Returns:
        The trials, in the order they were started in.

    Raises:
        TrackingError: the tracking store refuses in the end; nothing is lost, call again.
    """
    with store.refusals(store.START_IT):
        children = Children(parent)
    with TrialTable(space, plan.epochs) as table:
        reporter = _Reporter(children, table, plan)
        try:
            tune.run(
                tune.with_parameters(
                    _train_trial, resolve=resolve, training=training, validation=validation
                ),
                name=parent.info.run_id,
                config=_domains(space, plan.search),
                metric=METRIC,
                mode=MODE,
                num_samples=1 if plan.search == "grid" else plan.trials,
                search_alg=_searcher(plan),
                scheduler=_scheduler(plan),
                resources_per_trial={"cpu": plan.cpus_per_trial, "gpu": plan.gpus_per_trial},
                storage_path=storage,
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                # Importing torch takes longer than a short trial.
                reuse_actors=True,
                max_failures=plan.retries,
                raise_on_failed_trial=False,
                resume="AUTO",
                callbacks=[reporter],
                verbose=0,
            )
        except BaseException:
            with suppress(Exception), store.single_attempt():
                children.kill()
            raise
    return [_outcome(trial, children, plan) for trial in reporter.trials]


def _train_trial(
    config: dict[str, Any], resolve: Resolve, training: Subset, validation: Subset
) -> None:
    """Train one trial on whichever node it is, from its last checkpoint if there is one."""
    experiment = resolve(config)
    model, params = build(experiment, training.digest)
    state, epochs = None, []
    kept = tune.get_checkpoint()
    if kept is not None:
        with kept.as_directory() as folder:
            record = torch.load(Path(folder, STATE), map_location="cpu", weights_only=True)
        state, epochs = record["state"], record["epochs"]
    for epoch in loop.train(model, training, experiment.recipe, validation, state):
        epochs.append(epoch.summary())
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"state": epoch.state, "epochs": epochs}, Path(folder, STATE))
            # All epochs each time: what the driver could not log is logged with the next.
            report = {
                "epoch": epoch.number,
                "epochs": epochs,
                "params": params,
                "node": ray.get_runtime_context().get_node_id(),
                **epoch.metrics,
            }
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


class _Reporter(tune.Callback):
    """Logs and shows trials as they go; in the end all must have been logged."""

    def __init__(self, children: Children, table: TrialTable, plan: Plan) -> None:
        self.trials: list[Trial] = []
        self._children, self._table, self._plan = children, table, plan

    def on_trial_start(self, *_: Any, **event: Any) -> None:
        self._report(event, lambda trial: self._children.start(trial.trial_id))

    def on_trial_result(self, *_: Any, **event: Any) -> None:
        self._report(event, lambda trial: self._log(trial, event["result"]))

    def on_trial_complete(self, *_: Any, **event: Any) -> None:
        self._report(event, self._settle)

    def on_trial_error(self, *_: Any, **event: Any) -> None:
        self._report(event, self._settle)

    def on_experiment_end(self, trials: list[Trial], **_: Any) -> None:
        self._show(trials)
        self.trials = trials
        with store.refusals("what the trials found is kept"):
            for trial in trials:
                self._settle(trial)

    def _report(self, event: Mapping[str, Any], log: Callable[[Trial], None]) -> None:
        self._show(event["trials"])
        try:
            with store.single_attempt():
                log(event["trial"])
        except Exception as error:  # as in runs.refusals
            logger.warning(
                "The tracking store does not answer (%s): the sweep goes on", store.reason(error)
            )

    def _log(self, trial: Trial, result: Mapping[str, Any]) -> None:
        self._children.log(trial.trial_id, result["params"], result["epochs"], result["node"])

    def _settle(self, trial: Trial) -> None:
        outcome = _outcome(trial, self._children, self._plan)
        if outcome.metrics:
            self._log(trial, trial.last_result)
        self._children.end(trial.trial_id, outcome.failure, outcome.stopped)

    def _show(self, trials: list[Trial]) -> None:
        self._table.show([_row(trial) for trial in trials])


def _outcome(trial: Trial, children: Children, plan: Plan) -> Outcome:
    epochs = trial.run_metadata.last_result.get("epochs", [])
    failure = None
    if trial.status == Trial.ERROR:
        lines = str(trial.get_error() or "").strip().splitlines()
        failure = store.reason(RuntimeError(lines[-1] if lines else "its node died"))
    return Outcome(
        name=trial.trial_id,
        run_id=children.run_id(trial.trial_id),
        config=dict(trial.config),
        epochs=len(epochs),
        metrics=dict(epochs[-1]["metrics"]) if epochs else {},
        failure=failure,
        stopped=failure is None and len(epochs) < plan.epochs,
    )


def _row(trial: Trial) -> tuple[str, str, int, float | None, dict[str, Any]]:
    result = trial.run_metadata.last_result
    return (
        trial.trial_id,
        trial.status,
        result.get("epoch", 0),
        result.get(METRIC),
        dict(trial.config),
    )


def _domains(space: Space, search: str) -> dict[str, Any]:
    def domain(value: Any) -> Any:
        if isinstance(value, Range):
            draw = tune.loguniform if value.log else tune.uniform
            return draw(value.low, value.high)
        if isinstance(value, list):
            return tune.grid_search(value) if search == "grid" else tune.choice(value)
        return value

    return {name: domain(value) for name, value in space.dimensions.items()}


def _searcher(plan: Plan) -> OptunaSearch | BasicVariantGenerator:
    if plan.search == "optuna":
        return OptunaSearch(seed=plan.seed)
    return BasicVariantGenerator(random_state=plan.seed)


def _scheduler(plan: Plan) -> FIFOScheduler:
    if not plan.grace_epochs or plan.grace_epochs >= plan.epochs:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        max_t=plan.epochs,
        grace_period=plan.grace_epochs,
        reduction_factor=REDUCTION_FACTOR,
    )


@contextmanager
def cluster() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start one of this machine alone.

    Raises:
        SweepError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Signals are for the command to handle, and results are MLflow's to keep.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # It calls it an error that a new sweep has no state to go on from.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS")
    package = Path(__file__).parents[1]
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_that_someone_listens(address)
        ray.init(
            address or "local",
            runtime_env={"py_modules": [str(package)]},
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except OSError as error:
        raise SweepError(f"there is no Ray cluster at RAY_ADDRESS={address}") from error
    signal.signal(signal.SIGTERM, handler)  # Ray has put its own
    try:
        yield
    finally:
        ray.shutdown()


def _check_that_someone_listens(address: str | None) -> None:
    """Find out at once what Ray finds out in minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()
