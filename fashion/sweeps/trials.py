"""The trials of a sweep as MLflow runs, children of the sweep's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunStatus, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fashion.errors import FashionError
from fashion.tracking import runs
from fashion.tracking.runs import FAILURE_TAG, TRIAL_TAG


class SweepError(FashionError):
    """There is no such cluster, or no trial could be trained."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        name: of the trial.
        run_id: of its MLflow run.
        config: the settings it was given.
        epochs: how many it was trained for.
        metrics: those of its last epoch; none if it never got through one.
        failure: why it failed, None if it did not.
        stopped: whether it was stopped for being worse than others.
    """

    name: str
    run_id: str
    config: dict[str, Any]
    epochs: int
    metrics: dict[str, float]
    failure: str | None
    stopped: bool


# The tag of the node of the cluster that trained it last.
NODE_TAG = "node"
# Tags that say by whom and from which commit.
INHERITED = ("mlflow.user", "mlflow.source.")
# The tag of a trial that the scheduler stopped because others were better.
STOPPED_TAG = "stopped_early"


class Children:
    """The runs of a sweep's trials: one each, however often a trial or the sweep starts again.

    Whatever has been logged already does not change when it is again.
    """

    def __init__(self, parent: Run) -> None:
        self._client = MlflowClient()
        self._parent = parent
        self._run_ids: dict[str, str] = {}
        self._logged: dict[str, int] = {}
        for child in runs.children(parent, f"tags.`{TRIAL_TAG}` != ''"):
            self._run_ids[child.data.tags[TRIAL_TAG]] = child.info.run_id

    def start(self, trial: str) -> None:
        """Open the run of a trial, or open it again."""
        if trial in self._run_ids:
            self._client.update_run(self._run_ids[trial], RunStatus.to_string(RunStatus.RUNNING))
        else:
            self.run_id(trial)

    def run_id(self, trial: str) -> str:
        """Return the id of a trial's run, which is opened where there is none."""
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
        """Log what is new of a trial.

        Args:
            trial: which one.
            params: what it trains.
            epochs: `engine.Epoch.summary` of every epoch up to now.
            node: of the cluster, where it was trained last.
        """
        done = self._logged.get(trial, 0)
        metrics = [
            Metric(name, value, epoch["timestamp"], number)
            for number, epoch in enumerate(epochs[done:], done + 1)
            for name, value in epoch["metrics"].items()
        ]
        logged = [Param(name, str(value)) for name, value in params.items()] if not done else []
        tags = [RunTag(NODE_TAG, node)]
        self._client.log_batch(self.run_id(trial), metrics=metrics, params=logged, tags=tags)
        self._logged[trial] = len(epochs)

    def end(self, trial: str, failure: str | None = None, stopped: bool = False) -> None:
        """Close a trial's run: FAILED where there is a `failure`, which says why."""
        run_id = self.run_id(trial)
        self._client.set_tag(run_id, STOPPED_TAG, str(stopped).lower())
        if failure is not None:
            self._client.set_tag(run_id, FAILURE_TAG, failure)
        status = RunStatus.FINISHED if failure is None else RunStatus.FAILED
        self._client.set_terminated(run_id, RunStatus.to_string(status))

    def kill(self) -> None:
        """Close the runs that are open: the sweep was stopped."""
        for run_id in runs.open_trials(self._parent):
            self._client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))
