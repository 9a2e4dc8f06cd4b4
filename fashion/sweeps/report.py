"""What a sweep found: a table, the best configuration, and Optuna's figures."""

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
from fashion.sweeps.trials import Outcome, SweepError


def table(outcomes: Sequence[Outcome], space: Space) -> pd.DataFrame:
    """Return a row for each trial, best first: its run, what was searched, how far it came."""
    rows = [
        {
            "trial": outcome.name,
            "run_id": outcome.run_id,
            **{name: outcome.config[name] for name in space.searched},
            "epochs_trained": outcome.epochs,
            "stopped_early": outcome.stopped,
            "failure": outcome.failure,
            **outcome.metrics,
        }
        for outcome in outcomes
    ]
    return pd.DataFrame(rows).sort_values(METRIC, ascending=False, ignore_index=True)


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the trial of the highest validation accuracy after its last epoch.

    Those that did not get as far as others were stopped for being worse, or failed.

    Raises:
        SweepError: none got through an epoch.
    """
    furthest = max((outcome.epochs for outcome in outcomes), default=0)
    if not furthest:
        reasons = {outcome.failure for outcome in outcomes}
        raise SweepError(f"no trial got through an epoch: {'; '.join(map(str, reasons))}")
    return max((outcome for outcome in outcomes if outcome.epochs == furthest), key=_accuracy)


def _accuracy(outcome: Outcome) -> float:
    return outcome.metrics[METRIC]


def command(config: Mapping[str, Any]) -> str:
    """Return the command that trains a configuration, tests it and logs its model."""
    parameters = [f"-P {name}={_text(value)}" for name, value in config.items()]
    return " \\\n  ".join(["mlflow run . -e train --env-manager local", *parameters])


def _text(value: Any) -> str:
    # repr of a float reads back as the same number.
    return str(value).lower() if isinstance(value, bool) else str(value)


def figures(outcomes: Sequence[Outcome], space: Space) -> dict[str, Figure]:
    """Draw parallel coordinates and, of two trials or more, how much each option mattered.

    A trial counts with the validation accuracy after its last epoch, also when it was stopped. The
    importance is the share of the variance of that which an option explains (fANOVA: Hutter, Hoos
    and Leyton-Brown, ICML 2014).

    Returns:
        Figures by file name.
    """
    distributions = {name: _distribution(space.dimensions[name]) for name in space.searched}
    study = optuna.create_study(direction="maximize")
    for outcome in outcomes:
        if outcome.metrics:
            study.add_trial(
                optuna.trial.create_trial(
                    params={name: outcome.config[name] for name in distributions},
                    distributions=distributions,
                    value=_accuracy(outcome),
                )
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # A choice of which all trials had the same value.
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
        plt.close(figure)  # optuna draws by pyplot, which keeps what it drew
    return found


def _distribution(value: Any) -> BaseDistribution:
    if isinstance(value, Range):
        return FloatDistribution(value.low, value.high, log=value.log)
    return CategoricalDistribution(value)
