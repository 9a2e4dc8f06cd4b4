"""One command repeats a record of the speedrun, and says whether it stands."""

from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from benchmarks import speedrun
from fashion.data.dataset import Dataset


@pytest.mark.slow(seconds=40)
def test_a_record_is_repeated_by_five_logged_runs_and_refused_below_its_accuracy(
    store: Path, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**speedrun.RECORDS["cpu-93"], "epochs": 1, "val_size": 200}
    monkeypatch.setitem(speedrun.RECORDS, "cpu-93", short)
    monkeypatch.setattr(speedrun, "load_dataset", lambda: small)
    result = CliRunner().invoke(speedrun.main, ["--record", "cpu-93"])
    assert result.stderr.splitlines()[-1] == "Error: the mean is below 93 %", result.exception
    assert result.exit_code == 1
    runs = mlflow.search_runs(experiment_names=["speedrun"], order_by=["params.seed"])
    assert list(runs["params.seed"]) == ["42", "43", "44", "45", "46"]
    logged = [f"{100 * accuracy:.2f}" for accuracy in runs["metrics.test_accuracy_tta"]]
    assert ", ".join(logged) in result.stdout
