"""The colours of figures, and the one of each model."""

from fashion.models.catalogue import MODELS

# Okabe and Ito's colours, which people with colour blindness can tell apart.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
RIGHT, WRONG = "#007A5A", "#C0392B"
NEUTRAL = "#8C8C8C"


def color_of(model: str) -> str:
    """Return the colour of a model, which is the same in each figure and in MLflow's UI."""
    names = list(MODELS)
    return COLORS[names.index(model) if model in names else len(names)]
