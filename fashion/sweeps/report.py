"""Report the results of a sweep: a table, the best configuration, and Optuna's figures."""

import shlex
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.visualization import matplotlib as drawn

from fashion.sweeps.plan import METRIC, Range, Space
from fashion.sweeps.trials import SweepError, TrialResult


def table(results: Sequence[TrialResult], space: Space) -> pd.DataFrame:
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
        for result in sorted(results, key=_merit, reverse=True)
    ]
    return pd.DataFrame(rows)


def best(results: Sequence[TrialResult]) -> TrialResult:
    """Return the trial with the highest validation accuracy after its last epoch.

    Only trials with the most epochs among those that did not fail count; the others were stopped
    early.

    Raises:
        SweepError: all trials failed.
    """
    first = max(results, key=_merit)
    if first.failure is not None:
        reasons = dict.fromkeys(result.failure for result in results)
        raise SweepError(f"all trials failed: {'; '.join(map(str, reasons))}")
    return first


def _merit(result: TrialResult) -> tuple[bool, int, float]:
    return result.failure is None, result.epochs, result.metrics.get(METRIC, 0)


def command(config: Mapping[str, Any]) -> str:
    """Return the shell command that trains a configuration, tests it and logs the model."""
    parameters = [f"-P {shlex.quote(f'{name}={_text(value)}')}" for name, value in config.items()]
    return " \\\n  ".join(["mlflow run . -e train --env-manager local", *parameters])


def _text(value: Any) -> str:
    # repr of a float reads back as the same number.
    return str(value).lower() if isinstance(value, bool) else str(value)


def figures(results: Sequence[TrialResult], space: Space) -> dict[str, Figure]:
    """Draw parallel coordinates and, if trials differ in accuracy, the importance of each option.

    Both use the validation accuracy after each trial's last epoch, including stopped trials. The
    importance is the share of its variance that an option explains (fANOVA: Hutter, Hoos and
    Leyton-Brown, ICML 2014).

    Returns:
        Figures by file name.
    """
    distributions = {name: _distribution(space.dimensions[name]) for name in space.searched}
    study = optuna.create_study(direction="maximize")
    for result in results:
        if result.metrics:
            study.add_trial(
                optuna.trial.create_trial(
                    params={name: result.config[name] for name in distributions},
                    distributions=distributions,
                    value=result.metrics[METRIC],
                )
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Raised if all trials chose the same value of an option.
        warnings.filterwarnings("ignore", "Attempting to set identical", UserWarning)
        axes = {
            "parallel_coordinates.png": drawn.plot_parallel_coordinate(study, target_name=METRIC)
        }
        if len({trial.value for trial in study.trials}) > 1:
            evaluator = FanovaImportanceEvaluator(seed=0)
            axes["importances.png"] = drawn.plot_param_importances(
                study, evaluator, target_name=METRIC
            )
    found = {name: plot.figure for name, plot in axes.items() if isinstance(plot.figure, Figure)}
    for figure in found.values():
        figure.set_size_inches(9, 4.5)
        figure.set_layout_engine("tight")
        plt.close(figure)  # optuna uses pyplot, which keeps figures open
    return found


def _distribution(value: Any) -> BaseDistribution:
    if isinstance(value, Range):
        return FloatDistribution(value.low, value.high, log=value.log)
    return CategoricalDistribution(value)
