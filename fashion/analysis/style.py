"""The style of all figures, and how to show percentages and numbers."""

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fashion.analysis.colors import COLORS

# Shows a fraction in percent.
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g}%")


def literal(text: str, width: int = 40) -> str:
    """Return a name as matplotlib draws it: as it is, not what is between dollars as a formula.

    Of a name with more than `width` characters only the beginning.
    """
    short = text if len(text) <= width else f"{text[: width - 1]}…"
    return short.replace("$", r"\$")


# Decorate a function that creates a figure with this.
styled = rc_context(
    {
        "figure.dpi": 150,
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
        "figure.titlesize": 11,
        "figure.titleweight": "bold",
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "lines.markersize": 4,
    }
)


def epoch_axis(axes: Axes) -> None:
    """Label the x axis as epochs, with whole numbers."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def log_axis(axes: Axes) -> None:
    """Make the x axis logarithmic, with ticks at 1, 2 and 5 times the powers of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
