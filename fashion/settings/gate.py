"""When a better version replaces the champion."""

from dataclasses import dataclass

from fashion.settings.option import option, options_of


@dataclass(frozen=True)
class Gate:
    """When a better version replaces the champion.

    A first champion needs no test, nor does the successor of one that was rolled back.
    """

    min_p: float = option(
        0.05,
        "Largest p-value (McNemar's exact one-sided test on the paired predictions) with which a"
        " better model becomes champion; 1 disables the test.",
        min=0,
        max=1,
    )
    min_gain: float = option(
        0.0, "Least improvement of the metric with which a better model becomes champion.", min=0
    )
    force: bool = option(False, "Make the registered version champion without these conditions.")


DEFAULT_GATE = Gate()
GATE_OPTIONS = options_of(Gate)
