"""Search with Ray Tune, on this machine or on the cluster at RAY_ADDRESS.

Workers only train: they do not use MLflow and do not get test images. The driver, the process that
started the sweep, logs what they report.
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
from fashion.settings.metrics import METRICS
from fashion.sweeps.plan import Plan, Range, Space
from fashion.sweeps.progress import TrialTable
from fashion.sweeps.trials import Children, SweepError, TrialResult
from fashion.tracking import store
from fashion.training import loop
from fashion.training.build import build

STATE = "state.pt"
# Ray's address of a cluster that it starts on this machine.
LOCAL = "local"
# ASHA keeps one in so many trials at each rung, with as many times more epochs (Li et al.,
# arXiv:1810.05934); Ray's default.
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
) -> list[TrialResult]:
    """Train all trials on the `cluster`, resuming those of an earlier, interrupted call.

    Args:
        parent: the sweep's MLflow run, open.
        space: the search space.
        plan: how to search.
        training: images to train on.
        validation: images to compare trials on.
        storage: folder visible to all nodes, or an address that Ray supports, for the state of the
            sweep.
        resolve: converts a configuration to an experiment.

    Returns:
        The results of the trials, in the order of their start.

    Raises:
        TrackingError: the tracking store cannot be used at the end; call again to resume.
    """
    with store.refusals(store.START_IT):
        children = Children(parent)
    with TrialTable(space, plan) as table:
        reporter = _Reporter(children, table, plan)
        try:
            tune.run(
                tune.with_parameters(
                    _train_trial, resolve=resolve, training=training, validation=validation
                ),
                name=parent.info.run_id,
                config=_domains(space, plan.search),
                metric=plan.metric,
                mode="min" if METRICS[plan.metric].lower_is_better else "max",
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
    return [_trial_result(trial, children, plan) for trial in reporter.trials]


def _train_trial(
    config: dict[str, Any], resolve: Resolve, training: Subset, validation: Subset
) -> None:
    """Train one trial on a worker, from its last checkpoint if there is one."""
    experiment = resolve(config)
    model, params = build(experiment, training)
    state, epochs = None, []
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            record = torch.load(Path(folder, STATE), map_location="cpu", weights_only=True)
        state, epochs = record["state"], record["epochs"]
    for epoch in loop.train(model, training, experiment.recipe, validation, state):
        epochs.append(epoch.summary())
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"state": epoch.state, "epochs": epochs}, Path(folder, STATE))
            # All epochs each time: those that the driver could not log are logged with the next.
            report = {
                "epoch": epoch.number,
                "epochs": epochs,
                "params": params,
                "node": ray.get_runtime_context().get_node_id(),
                **epoch.metrics,
            }
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


class _Reporter(tune.Callback):
    """Logs and shows trials while they run; errors in logging are fatal only at the end."""

    def __init__(self, children: Children, table: TrialTable, plan: Plan) -> None:
        self.trials: list[Trial] = []
        self._children, self._table, self._plan = children, table, plan

    def on_trial_start(self, *_: Any, **event: Any) -> None:
        self._report(event, lambda trial: self._children.start(trial.trial_id))

    def on_trial_result(self, *_: Any, **event: Any) -> None:
        self._report(event, lambda trial: self._log(trial, event["result"]))

    def on_trial_complete(self, *_: Any, **event: Any) -> None:
        self._report(event, self._finish)

    def on_trial_error(self, *_: Any, **event: Any) -> None:
        self._report(event, self._finish)

    def on_experiment_end(self, trials: list[Trial], **_: Any) -> None:
        self._show(trials)
        self.trials = trials
        with store.refusals("the trials' results are saved"):
            for trial in trials:
                self._finish(trial)

    def _report(self, event: Mapping[str, Any], log: Callable[[Trial], None]) -> None:
        self._show(event["trials"])
        try:
            with store.single_attempt():
                log(event["trial"])
        except Exception as error:  # as in store.refusals
            logger.warning(
                "Cannot log to the tracking store (%s): the sweep continues", store.reason(error)
            )

    def _log(self, trial: Trial, result: Mapping[str, Any]) -> None:
        self._children.log(trial.trial_id, result["params"], result["epochs"], result["node"])

    def _finish(self, trial: Trial) -> None:
        result = _trial_result(trial, self._children, self._plan)
        if result.metrics:
            self._log(trial, trial.last_result)
        self._children.end(trial.trial_id, result.failure, result.stopped)

    def _show(self, trials: list[Trial]) -> None:
        self._table.show([_row(trial, self._plan.metric) for trial in trials])


def _trial_result(trial: Trial, children: Children, plan: Plan) -> TrialResult:
    epochs = trial.run_metadata.last_result.get("epochs", [])
    failure = None
    if trial.status == Trial.ERROR:
        lines = str(trial.get_error() or "").strip().splitlines()
        failure = store.reason(RuntimeError(lines[-1] if lines else "its node died"))
    return TrialResult(
        name=trial.trial_id,
        run_id=children.run_id(trial.trial_id),
        config=dict(trial.config),
        epochs=len(epochs),
        metrics=dict(epochs[-1]["metrics"]) if epochs else {},
        failure=failure,
        stopped=failure is None and len(epochs) < plan.epochs,
    )


def _row(trial: Trial, metric: str) -> tuple[str, str, int, float | None, dict[str, Any]]:
    result = trial.run_metadata.last_result
    return (
        trial.trial_id,
        trial.status,
        result.get("epoch", 0),
        result.get(metric),
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
def cluster(plan: Plan) -> Iterator[None]:
    """Connect to the cluster at RAY_ADDRESS, or start one on this machine alone.

    Raises:
        SweepError: the cluster is unreachable or cannot be started, or this machine has less than
            a trial of `plan` needs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The command handles signals, and MLflow stores the results.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # With resume=AUTO it logs an error for each new sweep, which has no state to resume.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    package = Path(__file__).parents[1]
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_reachable(address)
        ray.init(
            address,
            runtime_env={"py_modules": [str(package)]},
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except OSError as error:
        if address != LOCAL:
            raise SweepError(f"no Ray cluster is reachable at RAY_ADDRESS={address}") from error
        # Sockets have short paths, and a folder made by another user may be closed to this one.
        raise SweepError(
            f"Ray cannot start ({store.reason(error)}): set RAY_TMPDIR to a folder with a short"
            " path that you can write to"
        ) from error
    signal.signal(signal.SIGTERM, handler)  # Ray has replaced it
    try:
        _check_resources(plan, address)
        yield
    finally:
        ray.shutdown()


def _check_resources(plan: Plan, address: str) -> None:
    """Check that a node has what a trial needs; without one, Ray would wait silently."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {"CPU": plan.cpus_per_trial, "GPU": plan.gpus_per_trial}
    if any(all(node.get(kind, 0) >= needed[kind] for kind in needed) for node in nodes):
        return
    what = f"a trial needs {needed['CPU']} CPU cores and {needed['GPU']:g} GPUs"
    if address != LOCAL:  # more nodes may join
        logger.warning("%s: the sweep waits until the cluster has a node with as many", what)
        return
    (here,) = nodes
    raise SweepError(
        f"{what}, but this machine has {here.get('CPU', 0):g} and {here.get('GPU', 0):g}:"
        " lower cpus_per_trial or gpus_per_trial"
    )


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at the address; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()
