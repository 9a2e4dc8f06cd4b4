"""Time whole processes, and the imports and training that they consist of."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.timing import interleave, medians, table

ROOT = Path(__file__).parent.parent
# Including lazy imports of MLflow and torch.export for logging a model.
IMPORTED = (
    "torch, mlflow, fashion.tracking.training, sklearn.model_selection, mlflow.pytorch",
    "torch._dynamo, torch.export._trace, torch.export.pt2_archive",
    "mlflow.store.tracking.sqlalchemy_store",
)


def processes(repetitions: int) -> tuple[str, dict]:
    """Time `mlflow run`, its entry point, the imports, and --help."""
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_ARTIFACT_ROOT": folder,
        }
        trained: list[float] = []

        def start(*command: str) -> Callable[[], None]:
            def run() -> None:
                done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
                if done.returncode:
                    raise click.ClickException(f"{' '.join(command)}: {done.stderr}")
                epochs = [
                    float(s) for s in re.findall(r"^epoch .* (\d+\.\d) s$", done.stdout, re.M)
                ]
                if epochs:
                    trained.append(sum(epochs))

            return run

        python = sys.executable
        train = ["-m", "entrypoints.train", "--model", "baseline"]
        seconds = interleave(
            {
                "mlflow run . -e train -P model=baseline": start(
                    "mlflow", "run", ".", "-e", "train", "-P", "model=baseline",
                    "--env-manager", "local", "--experiment-name", "benchmark",
                ),
                "mlflow run . -e compare": start(
                    "mlflow", "run", ".", "-e", "compare",
                    "--env-manager", "local", "--experiment-name", "benchmark",
                ),
                "python -m entrypoints.train --model baseline": start(python, *train),
                "python -m entrypoints.train --help": start(python, *train, "--help"),
                "import torch": start(python, "-c", "import torch"),
                "import mlflow": start(python, "-c", "import mlflow"),
                "import torchvision": start(python, "-c", "import torchvision"),
                "import torch, mlflow": start(python, "-c", "import torch, mlflow"),
                "import torch, torchvision, mlflow": start(
                    python, "-c", "import torch, torchvision, mlflow"
                ),
                "import what a run imports": start(python, "-c", f"import {', '.join(IMPORTED)}"),
            },
            repetitions,
        )  # fmt: skip
    middle = medians(seconds)
    bare = sorted(trained)[len(trained) // 2]
    train, imports = middle["python -m entrypoints.train --model baseline"], "import torch, mlflow"
    yardstick = middle["import torch, torchvision, mlflow"] + bare
    ratios = {
        "train beyond training and importing torch and mlflow, in times of these imports": (
            train - bare - middle[imports]
        )
        / middle[imports],
        "train beyond training and all it imports, in times of importing torch and mlflow": (
            train - bare - middle["import what a run imports"]
        )
        / middle[imports],
        "mlflow run, in times of importing torch, torchvision and mlflow, and training": (
            middle["mlflow run . -e train -P model=baseline"] / yardstick
        ),
        "mlflow run of compare, in times of importing mlflow": (
            middle["mlflow run . -e compare"] / middle["import mlflow"]
        ),
        "--help, in times of importing torch": (
            middle["python -m entrypoints.train --help"] / middle["import torch"]
        ),
    }
    rows: list[list[object]] = [[name, f"{value:.2f}", ""] for name, value in middle.items()]
    rows.append(["bare training, 3 epochs of baseline", f"{bare:.2f}", ""])
    rows += [[name, "", f"{value:.2f}"] for name, value in ratios.items()]
    return table(["process", "seconds", "ratio"], rows), {
        "seconds": seconds,
        "bare_training": trained,
        "ratios": ratios,
    }
