"""Import what the commands import, and what that imports late, by running one."""

import os
import shutil
import sys
import tempfile
from contextlib import chdir, redirect_stdout

import mlflow
import torch

from entrypoints import train
from fashion.analysis import drawing
from tests import blank
from tests.processes import EMPTY_STORE

drawing.draw, drawing.start = blank.draw, lambda: None
# A pool of threads would not outlive a fork.
torch.set_num_threads(1)
# The test that needs the first process may have named a store and an experiment.
for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
    if name != "MLFLOW_DISABLE_TELEMETRY":
        del os.environ[name]
# MLflow looks once for the commit of the script that runs.
sys.argv[0] = train.__file__

with tempfile.TemporaryDirectory() as folder, chdir(folder), redirect_stdout(None):
    if EMPTY_STORE in os.environ:
        shutil.copy(os.environ[EMPTY_STORE], "mlflow.db")
    os.environ |= {"FASHION_STATE_DIR": folder, "MLFLOW_EXPERIMENT_NAME": "preload"}
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    train.train(["--model", "baseline", "--epochs", "1"], standalone_mode=False)
    mlflow.set_tracking_uri(None)
    del os.environ["MLFLOW_EXPERIMENT_NAME"]
