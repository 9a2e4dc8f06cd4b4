"""Tags of runs that have a meaning for this project."""

from fashion.settings.experiment import LOGGED

# The model's name; it marks the training runs among the runs of an experiment.
MODEL_TAG = "model"
# Id of the sweep's trial that a run belongs to.
TRIAL_TAG = "trial"
# Why a run did not finish.
FAILURE_TAG = "failure"
# What changed around a run before it was resumed, if the user allowed that.
CHANGES_TAG = "resumed_with_changes"
# Of a run that was resumed with another number of epochs, and of the run that this became.
CONTINUED_TAG = "continued_as"
CONTINUES_TAG = "continues"
# The conditions of the run that are facts about its environment.
ENVIRONMENT_TAGS = tuple(name for name, option in LOGGED.items() if option.tag)
# Digest of the code that decides a run's weights; its commit does not tell whether it was changed.
CODE_TAG = "code_digest"
# Of a run of `reproduce`: whether the weights were equal.
REPRODUCED_TAG = "reproduced"

RESERVED = (
    MODEL_TAG,
    TRIAL_TAG,
    FAILURE_TAG,
    CHANGES_TAG,
    CONTINUED_TAG,
    CONTINUES_TAG,
    CODE_TAG,
    REPRODUCED_TAG,
    *ENVIRONMENT_TAGS,
)
