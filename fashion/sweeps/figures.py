"""Draw a sweep: every trial across its settings, and how much each setting matters."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fashion.analysis.colors import COLORS, NEUTRAL, WRONG
from fashion.analysis.style import PERCENT, styled
from fashion.settings.metrics import METRICS, described, score
from fashion.sweeps.plan import Range, Searched
from fashion.sweeps.trials import TrialResult

# Height of the labels of an axis's ends and of the axis itself, which is 0 to 1.
_NAME = 1.08


@styled
def parallel_coordinates(
    results: Sequence[TrialResult], dimensions: Mapping[str, Searched], metric: str
) -> Figure:
    """Draw each trial as a line across its settings, to its `metric` on the right.

    Trials that were stopped early are thin; failed ones, which have no result that counts, are
    dotted and end before it.

    Args:
        results: the trials.
        dimensions: by option, the choices or the range that were searched.
        metric: what the trials are compared by.
    """
    figure = Figure(figsize=(max(6.0, 1.5 * len(dimensions) + 3), 4.5), layout="constrained")
    axes = figure.add_subplot()
    found = [result.metrics[metric] for result in results if _counts(result, metric)]
    scale = Normalize(min(found, default=0), max(found, default=1) or 1)
    lower_is_better = METRICS[metric].lower_is_better
    colors = colormaps["viridis" if lower_is_better else "viridis_r"]
    # The best one last, on top.
    for result in sorted(results, key=lambda each: _merit(each, metric)):
        heights = [_height(value, result.config[name]) for name, value in dimensions.items()]
        style: dict[str, Any] = {"color": WRONG, "linewidth": 1.0, "linestyle": ":"}
        if _counts(result, metric):
            share = scale(result.metrics[metric])
            heights.append(float(share))
            style = {"color": colors(share), "linewidth": 0.6 if result.stopped else 1.8}
        axes.plot(range(len(heights)), heights, **style)
    for position, (name, dimension) in enumerate(dimensions.items()):
        _draw_axis(axes, position, name, dimension)
    axes.text(
        len(dimensions), _NAME, described(metric).replace(" ", "\n", 1), ha="center", va="bottom"
    )
    axes.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(scale, colors),
        ax=axes,
        pad=0.02,
        format=PERCENT if METRICS[metric].scale == 100 else None,
    )
    bar.outline.set_visible(False)
    axes.set_title(f"{_counted(results, metric)}\n\n")
    return figure


@styled
def importances(shares: Mapping[str, float], metric: str) -> Figure:
    """Draw the share of the variance of `metric` that each option explains."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure = Figure(figsize=(6, 1.2 + 0.35 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    names, values = [name for name, _ in ordered], [value for _, value in ordered]
    bars = axes.barh(names, values, color=COLORS[0])
    axes.bar_label(bars, labels=[f"{value:.0%}" for value in values], padding=3)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel(f"share of the variance of the {described(metric)}")
    axes.set_title("Which option matters?")
    return figure


def _counts(result: TrialResult, metric: str) -> bool:
    return result.failure is None and metric in result.metrics


def _merit(result: TrialResult, metric: str) -> float:
    return score(metric, result.metrics[metric]) if metric in result.metrics else -math.inf


def _counted(results: Sequence[TrialResult], metric: str) -> str:
    failed = sum(not _counts(result, metric) for result in results)
    stopped = sum(_counts(result, metric) and result.stopped for result in results)
    parts = [f"{len(results)} trials"]
    parts += [f"{stopped} stopped early (thin)"] * bool(stopped)
    parts += [f"{failed} failed (dotted)"] * bool(failed)
    return ", ".join(parts)


def _height(dimension: Searched, value: Any) -> float:
    """Return where a value is on its axis, from 0 to 1."""
    if isinstance(dimension, Range):
        low, high = dimension.low, dimension.high
        if dimension.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)
    return dimension.index(value) / max(len(dimension) - 1, 1)


def _draw_axis(axes: Axes, position: int, name: str, dimension: Searched) -> None:
    axes.plot([position, position], [0, 1], color=NEUTRAL, linewidth=1)
    axes.text(position, _NAME, name, ha="center", va="bottom")
    if isinstance(dimension, Range):
        shares = np.linspace(0, 1, 5)
        low, high = dimension.low, dimension.high
        values = low * (high / low) ** shares if dimension.log else low + (high - low) * shares
        ticks = [(share, f"{value:.2g}") for share, value in zip(shares, values, strict=True)]
    else:
        ticks = [(_height(dimension, value), str(value)) for value in dimension]
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for height, label in ticks:
        axes.text(position - 0.04, height, label, ha="right", va="center", fontsize=8, bbox=behind)
