"""The trials of a sweep as MLflow runs, children of the sweep's run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunStatus, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fashion.errors import FashionError
from fashion.settings.tags import ENVIRONMENT_TAGS, FAILURE_TAG, TRIAL_TAG
from fashion.tracking import runs


class SweepError(FashionError):
    """The Ray cluster cannot be used, or no trial could be trained."""


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial.

    Attributes:
        name: Ray's id of the trial, by which all output and tags refer to it.
        run_id: its MLflow run.
        config: its settings.
        epochs: number of finished epochs.
        metrics: metrics of the last epoch; empty if it finished none.
        failure: error message, None if it did not fail.
        stopped: whether the scheduler stopped it early.
    """

    name: str
    run_id: str
    config: dict[str, Any]
    epochs: int
    metrics: dict[str, float]
    failure: str | None
    stopped: bool


# Tag with the cluster node that trained the trial last.
NODE_TAG = "node"
# Prefixes of the tags that are copied from the sweep's run: user, commit.
INHERITED = ("mlflow.user", "mlflow.source.")
# Tag that says whether the scheduler stopped the trial early.
STOPPED_TAG = "stopped_early"


class Children:
    """The runs of a sweep's trials: one per trial, even if the trial or the sweep is resumed.

    Logging anything a second time changes nothing.
    """

    def __init__(self, parent: Run) -> None:
        self._client = MlflowClient()
        self._parent = parent
        self._run_ids: dict[str, str] = {}
        self._logged: dict[str, int] = {}
        for child in runs.children(parent, f"tags.`{TRIAL_TAG}` != ''"):
            self._run_ids[child.data.tags[TRIAL_TAG]] = child.info.run_id

    def start(self, trial: str) -> None:
        """Open or reopen the run of a trial."""
        if trial in self._run_ids:
            run_id = self._run_ids[trial]
            self._client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
            if FAILURE_TAG in self._client.get_run(run_id).data.tags:
                self._client.delete_tag(run_id, FAILURE_TAG)
        else:
            self.run_id(trial)

    def run_id(self, trial: str) -> str:
        """Return the id of a trial's run; create the run if there is none."""
        if trial not in self._run_ids:
            info, tags = self._parent.info, self._parent.data.tags
            inherited = {name: tags[name] for name in tags if name.startswith(INHERITED)}
            run = self._client.create_run(
                info.experiment_id,
                tags={**inherited, MLFLOW_PARENT_RUN_ID: info.run_id, TRIAL_TAG: trial},
                run_name=f"trial {trial}",
            )
            self._run_ids[trial] = run.info.run_id
        return self._run_ids[trial]

    def log(
        self,
        trial: str,
        params: Mapping[str, Any],
        epochs: Sequence[Mapping[str, Any]],
        node: str,
    ) -> None:
        """Log what has not been logged yet of a trial.

        Args:
            trial: id of the trial.
            params: what `build` returned for it.
            epochs: `loop.Epoch.summary` of every epoch so far.
            node: the cluster node that trained it last.
        """
        done = self._logged.get(trial, 0)
        metrics = [
            Metric(name, value, epoch["timestamp"], number)
            for number, epoch in enumerate(epochs[done:], done + 1)
            for name, value in epoch["metrics"].items()
        ]
        logged, tags = [], [RunTag(NODE_TAG, node)]
        if not done:
            settings = params.keys() - set(ENVIRONMENT_TAGS)
            logged = [Param(name, str(params[name])) for name in settings]
            tags += [RunTag(name, str(params[name])) for name in ENVIRONMENT_TAGS]
        self._client.log_batch(self.run_id(trial), metrics=metrics, params=logged, tags=tags)
        self._logged[trial] = len(epochs)

    def end(self, trial: str, failure: str | None = None, stopped: bool = False) -> None:
        """Close a trial's run: as FAILED if there is a `failure` (error message), else FINISHED."""
        run_id = self.run_id(trial)
        self._client.set_tag(run_id, STOPPED_TAG, str(stopped).lower())
        if failure is not None:
            self._client.set_tag(run_id, FAILURE_TAG, failure)
        status = RunStatus.FINISHED if failure is None else RunStatus.FAILED
        self._client.set_terminated(run_id, RunStatus.to_string(status))

    def kill(self) -> None:
        """Close the open runs as KILLED, after the sweep was interrupted."""
        for run_id in runs.open_trials(self._parent):
            self._client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))
