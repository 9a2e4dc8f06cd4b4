"""Log the CNN several times in a fresh process; print the seconds of each as JSON.

uv run python -m benchmarks.log_model 4
"""

import json
import logging
import sys
import tempfile
import time

import mlflow

from fashion.data.sources import load_dataset
from fashion.models import catalogue
from fashion.tracking import models
from fashion.training import evaluation


def main(times: int) -> None:
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    dataset = load_dataset()
    model = catalogue.build("cnn", seed=42).eval()
    answers = evaluation.evaluate(model, dataset.test)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(
            experiment_id=mlflow.create_experiment("benchmark", f"{folder}/artifacts")
        )
        for _ in range(times):
            with mlflow.start_run() as run:
                start = time.perf_counter()
                models.log_model(run, "cnn", model, dataset.test, answers)
                seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(int(sys.argv[1]))
