"""Report the results of a sweep: a table, the best configuration, and figures."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from fashion import advice
from fashion.settings.metrics import DEFAULT_METRIC, METRICS, score
from fashion.settings.option import as_typed
from fashion.sweeps import figures as draw
from fashion.sweeps.plan import Range, Searched, Space
from fashion.sweeps.trials import SweepError, TrialResult


def table(
    results: Sequence[TrialResult], space: Space, metric: str = DEFAULT_METRIC
) -> pd.DataFrame:
    """Return one row per trial, in the order of `best`: run, options, epochs trained, metrics."""
    rows = [
        {
            "trial": result.name,
            "run_id": result.run_id,
            **{name: result.config[name] for name in space.searched},
            "epochs_trained": result.epochs,
            "stopped_early": result.stopped,
            "failure": result.failure,
            **result.metrics,
        }
        for result in sorted(results, key=partial(_merit, metric), reverse=True)
    ]
    return pd.DataFrame(rows)


def best(results: Sequence[TrialResult], metric: str = DEFAULT_METRIC) -> TrialResult:
    """Return the trial with the best `metric` after its last epoch.

    Only trials with the most epochs among those that did not fail count; the others were stopped
    early.

    Raises:
        SweepError: all trials failed.
    """
    first = max(results, key=partial(_merit, metric))
    if first.failure is not None:
        reasons = dict.fromkeys(result.failure for result in results)
        raise SweepError(f"all trials failed: {'; '.join(map(str, reasons))}")
    return first


def _merit(metric: str, result: TrialResult) -> tuple[bool, int, float]:
    value = result.metrics.get(metric)
    merit = -math.inf if value is None else score(metric, value)
    return result.failure is None, result.epochs, merit


def command(config: Mapping[str, Any]) -> str:
    """Return the shell command that trains a configuration, tests it and logs the model."""
    typed = {name: as_typed(value) for name, value in config.items()}
    return " \\\n  ".join(advice.mlflow_run("train", typed))


def figures(
    results: Sequence[TrialResult], space: Space, metric: str = DEFAULT_METRIC
) -> dict[str, Figure]:
    """Draw parallel coordinates and, if trials differ in `metric`, the importance of each option.

    The importance is the share of the variance of the metric after each trial's last
    epoch, including stopped trials, that an option explains (fANOVA: Hutter, Hoos and Leyton-Brown,
    ICML 2014).

    Returns:
        Figures by file name.
    """
    drawn = {"parallel_coordinates.png": draw.parallel_coordinates(results, space.searched, metric)}
    study = _study(results, space, metric)
    if len({trial.value for trial in study.trials}) > 1:
        shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
        drawn["importances.png"] = draw.importances(shares, metric)
    return drawn


def _study(results: Sequence[TrialResult], space: Space, metric: str) -> optuna.Study:
    """Return the trials that did not fail as Optuna's."""
    distributions = {name: _distribution(value) for name, value in space.searched.items()}
    study = optuna.create_study(
        direction="minimize" if METRICS[metric].lower_is_better else "maximize"
    )
    for result in results:
        if result.metrics and result.failure is None:
            study.add_trial(
                optuna.trial.create_trial(
                    params={name: result.config[name] for name in distributions},
                    distributions=distributions,
                    value=result.metrics[metric],
                )
            )
    return study


def _distribution(value: Searched) -> BaseDistribution:
    if isinstance(value, Range):
        return FloatDistribution(value.low, value.high, log=value.log)
    return CategoricalDistribution(value)
