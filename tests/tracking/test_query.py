"""What the comparison shows: runs made up of a few numbers each, no training."""

import html
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import import_module
from io import StringIO
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Param
from rich.cells import cell_len

from entrypoints.compare import compare
from fashion.errors import printable
from fashion.settings.comparison import TABLE_FORMATS
from fashion.settings.experiment import LOGGED
from fashion.settings.metrics import METRICS
from fashion.tracking import models, query
from fashion.tracking.query import COLUMNS, GROUP_KEY, CompareError
from tests.conftest import assert_one_line

pytestmark = [pytest.mark.usefixtures("store"), pytest.mark.filterwarnings("error::FutureWarning")]

PARAMS = {
    "num_parameters": "8170",
    "epochs": "3",
    "batch_size": "32",
    "lr": "0.1",
    "hidden_units": "10",
    "val_size": "5000",
    "seed": "42",
}
UNFINISHED = ["RUNNING", "SCHEDULED", "FAILED", "KILLED"]
_clock = iter(range(1_700_000_000_000, 1_800_000_000_000, 1_000))


def log_run(
    model: str = "cnn",
    status: str = "FINISHED",
    experiment: str = "test",
    metrics: dict[str, float] | None = None,
    name: str | None = None,
    **params: object,
) -> str:
    """Make a training run, each a second later than the one before; return its id."""
    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    run = client.create_run(
        found.experiment_id if found else client.create_experiment(experiment),
        start_time=next(_clock),
        tags={"model": model},
        run_name=name or model,
    )
    run_id = run.info.run_id
    client.log_batch(
        run_id,
        [Metric(key, value, timestamp=1, step=1) for key, value in (metrics or {}).items()],
        [Param(key, str(value)) for key, value in (PARAMS | params).items()],
    )
    client.update_run(run_id, status=status)
    return run_id


def run_compare(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(compare, arguments, env=env)


def shown(*arguments: str) -> pd.DataFrame:
    """Return what the command shows, as the table that its JSON holds."""
    result = run_compare(*arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    return pd.DataFrame(json.loads(result.stdout))


def run_ids(*arguments: str) -> list[str]:
    table = shown(*arguments)
    return [] if table.empty else list(table["run_id"])


def table_lines(*arguments: str) -> list[str]:
    result = run_compare(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_runs_come_first_by_every_metric_also_where_the_rest_is_cut_off(
    metric: str,
) -> None:
    ids = {value: log_run(metrics={metric: value}) for value in (0.3, 0.1, 0.5, 0.2, 0.4)}
    best_first = (
        [0.1, 0.2, 0.3, 0.4, 0.5] if METRICS[metric].lower_is_better else [0.5, 0.4, 0.3, 0.2, 0.1]
    )

    assert run_ids("--metric", metric) == [ids[value] for value in best_first]
    assert run_ids("--metric", metric, "--top", "2") == [ids[value] for value in best_first[:2]]


def test_losses_and_seconds_are_better_when_lower_and_only_they() -> None:
    ascending = [metric for metric in METRICS if METRICS[metric].lower_is_better]
    assert ascending == ["val_loss", "test_loss", "train_seconds"]


def test_of_equal_runs_the_older_comes_first() -> None:
    ids = [log_run(metrics={"val_accuracy": 0.9}) for _ in range(3)]
    assert run_ids() == ids


@pytest.mark.parametrize("status", UNFINISHED)
def test_an_unfinished_run_comes_last_however_good_and_says_so(status: str) -> None:
    unfinished = log_run(status=status, metrics={"val_accuracy": 0.99, "test_accuracy": 0.98})
    finished = log_run(metrics={"val_accuracy": 0.5})

    assert run_ids() == [finished, unfinished]
    first, last = table_lines()[-2:]
    assert finished[:8] in first
    assert status not in first
    assert unfinished[:8] in last
    assert status in last
    assert "98.00" not in last


def test_unfinished_runs_do_not_push_finished_ones_out_of_the_top() -> None:
    for _ in range(3):
        log_run(status="RUNNING", metrics={"val_accuracy": 0.99})
    finished = log_run(metrics={"val_accuracy": 0.5})
    assert run_ids("--top", "1") == [finished]


@pytest.mark.parametrize("metrics", [{}, {"val_accuracy": math.nan}])
def test_a_finished_run_without_the_metric_comes_after_those_that_have_it(
    metrics: dict[str, float],
) -> None:
    without = log_run(metrics=metrics)
    having = log_run(metrics={"val_accuracy": 0.1})
    failed = log_run(status="FAILED")

    assert run_ids() == [having, without, failed]
    _, cells, _ = table_lines()[-3:]
    assert cells.split()[1] == "-"


def test_an_infinite_loss_is_the_worst_of_those_measured() -> None:
    diverged = log_run(metrics={"val_loss": math.inf})
    good = log_run(metrics={"val_loss": 0.3})
    assert run_ids("--metric", "val_loss") == [good, diverged]


def test_a_run_that_stopped_before_its_parameters_were_logged_is_shown() -> None:
    complete = log_run(metrics={"val_accuracy": 0.9})
    client = MlflowClient()
    experiment = client.get_experiment_by_name("test")
    bare = client.create_run(experiment.experiment_id, tags={"model": "cnn"}).info.run_id

    assert run_ids() == [complete, bare]
    # The gaps leave the whole numbers of the other run whole.
    csv = run_compare("--format", "csv").stdout
    assert pd.read_csv(StringIO(csv), dtype=str)["epochs"].iloc[0] == "3"


def test_runs_that_trained_no_model_are_left_out() -> None:
    with mlflow.start_run():
        mlflow.log_metric("val_accuracy", 1)
    trained = log_run(metrics={"val_accuracy": 0.5})
    assert run_ids() == [trained]


@pytest.mark.parametrize(
    "options",
    [
        ("--model", "cnn", "--model", "nonlinear"),
        ("--model", "cnn,nonlinear"),
        ("--model", "nonlinear, cnn,cnn"),
    ],
)
def test_models_are_named_by_repeating_the_option_or_by_commas(options: tuple[str, ...]) -> None:
    log_run("baseline", metrics={"val_accuracy": 0.9})
    worse = log_run("cnn", metrics={"val_accuracy": 0.7})
    better = log_run("nonlinear", metrics={"val_accuracy": 0.8})
    assert run_ids(*options) == [better, worse]
    assert run_ids(*options, "--top", "1") == [better]


def test_a_filter_is_mlflows_own_and_adds_to_the_other_conditions() -> None:
    log_run("baseline", lr="0.1", metrics={"val_accuracy": 0.9})
    log_run("cnn", lr="0.01", metrics={"val_accuracy": 0.9})
    wanted = log_run("cnn", lr="0.1", metrics={"val_accuracy": 0.6})
    log_run("cnn", lr="0.1", metrics={"val_accuracy": 0.4})
    condition = "params.lr = '0.1' and metrics.val_accuracy > 0.5"
    assert run_ids("--model", "cnn", "--filter", condition) == [wanted]


def test_a_filter_may_ask_for_the_unfinished_runs() -> None:
    log_run(metrics={"val_accuracy": 0.9})
    failed = log_run(status="FAILED")
    assert run_ids("--filter", "attributes.status = 'FAILED'") == [failed]


@pytest.mark.parametrize("options", [(), ("--group",), ("--latest-per-model",)])
def test_an_invalid_filter_is_refused_in_one_line(options: tuple[str, ...]) -> None:
    log_run()
    either = "params.lr = '1' or params.lr = '2'"
    for condition in ("nonsense", "lr = 0.1", "params.lr = 0.1", "'", either):
        assert_one_line(run_compare("--filter", condition, *options))


@pytest.mark.parametrize("options", [(), ("--group",), ("--latest-per-model",)])
@pytest.mark.parametrize("name", ["CNN", "it's", "cnn' or tags.model = 'x", "a\nb"])
def test_a_model_without_runs_is_refused_with_those_that_have_some(
    name: str, options: tuple[str, ...]
) -> None:
    log_run("cnn")
    log_run("baseline")
    message = assert_one_line(run_compare("--model", f"cnn,{name}", *options))
    assert (
        message
        == f"Error: no run of the model {printable(name)}: there are runs of baseline, cnn\n"
    )


def test_the_latest_run_of_each_model_is_shown_whatever_its_status_and_its_name() -> None:
    log_run("cnn", metrics={"val_accuracy": 0.99})
    cnn = log_run("cnn", metrics={"val_accuracy": 0.7})
    older = log_run("my-own.net", metrics={"val_accuracy": 0.6})
    own = log_run("my-own.net", metrics={"val_accuracy": 0.8})
    log_run("baseline", metrics={"val_accuracy": 0.9})
    baseline = log_run("baseline", status="RUNNING", metrics={"val_accuracy": 0.95})

    assert run_ids("--latest-per-model") == [own, cnn, baseline]
    assert run_ids("--latest-per-model", "--top", "1") == [own]
    assert run_ids("--latest-per-model", "--model", "cnn,baseline") == [cnn, baseline]
    # Of the runs that fulfil the filter.
    worse = "metrics.val_accuracy < 0.75"
    assert run_ids("--latest-per-model", "--filter", worse) == [cnn, older]


@pytest.mark.parametrize("name", ["it's", 'a "b"', """it's "b" """])
def test_a_model_with_quotes_in_its_name_is_compared_like_any_other(name: str) -> None:
    older = log_run("cnn", metrics={"val_accuracy": 0.7})
    for accuracy in (0.1, 0.2, 0.9):
        quoted = log_run(name, metrics={"val_accuracy": accuracy})
    assert run_ids("--latest-per-model") == [quoted, older]


@pytest.mark.parametrize("name", ["it's", 'a "b"'])
def test_a_model_with_quotes_in_its_name_can_be_asked_for(name: str) -> None:
    log_run("cnn")
    quoted = log_run(name)
    assert run_ids("--model", name) == run_ids("--model", name, "--latest-per-model") == [quoted]
    assert "both kinds of quotes" in assert_one_line(run_compare("--model", f"{name}\"'"))


def test_several_experiments_are_compared_together_and_all_of_them_by_one_word() -> None:
    ids = {
        name: log_run(experiment=name, metrics={"val_accuracy": accuracy})
        for name, accuracy in (("test", 0.7), ("second", 0.9), ("third one", 0.8))
    }
    assert run_ids() == [ids["test"]]
    assert run_ids("--experiment", "second") == [ids["second"]]
    both = [ids["third one"], ids["test"]]
    assert run_ids("--experiment", "test,third one") == both
    assert run_ids("--experiment", "test", "--experiment", "third one") == both
    assert run_ids("--experiment", "all") == [ids["second"], *both]


@pytest.mark.parametrize("options", [(), ("--group",), ("--latest-per-model",)])
def test_an_experiment_that_does_not_exist_is_refused_in_one_line(options: tuple[str, ...]) -> None:
    log_run()
    client = MlflowClient()
    client.delete_experiment(client.create_experiment("deleted"))
    for names in ("nowhere", "test,nowhere", "deleted"):
        message = assert_one_line(run_compare("--experiment", names, *options))
        assert names.removeprefix("test,") in message


@pytest.fixture
def three_seeds(store: Path) -> None:
    """Three seeds of one experiment, one seed of another, and what must not count."""
    for seed, accuracy, seconds in ((0, 0.80, 10), (1, 0.91, 12), (2, 0.90, 17)):
        log_run(
            seed=seed,
            metrics={"val_accuracy": accuracy, "test_accuracy": 0.5, "train_seconds": seconds},
        )
    log_run(seed=7, status="FAILED", metrics={"val_accuracy": 0.1})
    log_run(seed=8, status="RUNNING", metrics={"val_accuracy": 0.1})
    log_run(seed=0, lr="0.5", metrics={"val_accuracy": 0.6, "test_accuracy": 0.55})


@pytest.mark.usefixtures("three_seeds")
def test_groups_give_mean_and_sample_standard_deviation_over_the_seeds() -> None:
    first, second = shown("--group").to_dict("records")

    assert (first["lr"], first["n"], first["num_parameters"]) == (0.1, 3, 8170)
    # (0.80 + 0.91 + 0.90) / 3 and sqrt((0.07² + 0.04² + 0.03²) / 2).
    assert first["val_accuracy_mean"] == pytest.approx(0.87)
    assert first["val_accuracy_std"] == pytest.approx(0.060827625)
    # 39 / 3 and sqrt((3² + 1² + 4²) / 2).
    assert first["train_seconds_mean"] == pytest.approx(13)
    assert first["train_seconds_std"] == pytest.approx(3.605551275)
    assert first["test_accuracy_std"] == 0

    assert (second["lr"], second["n"]) == (0.5, 1)
    assert second["val_accuracy_mean"] == pytest.approx(0.6)
    assert second["val_accuracy_std"] is None or math.isnan(second["val_accuracy_std"])


@pytest.mark.usefixtures("three_seeds")
def test_the_terminal_shows_a_spread_only_where_there_is_one() -> None:
    first, second = table_lines("--group")[-2:]
    assert first.split()[1:5] == ["3", "87.00±6.08", "50.00±0.00", "13.0±3.6"]
    assert second.split()[1:5] == ["1", "60.00", "55.00", "-"]


def test_of_a_repeated_seed_the_latest_run_counts_once() -> None:
    for seed, accuracy in ((0, 0.1), (1, 0.8), (0, 0.6)):
        log_run(seed=seed, metrics={"val_accuracy": accuracy})
    (group,) = shown("--group").to_dict("records")
    assert group["n"] == 2
    assert group["val_accuracy_mean"] == pytest.approx(0.7)


def test_a_number_in_another_spelling_is_the_same_setting() -> None:
    for seed, lr, size in ((0, "0.1", "5000"), (1, "0.10", "5000"), (2, "1e-1", "05000")):
        log_run(seed=seed, lr=lr, val_size=size, metrics={"val_accuracy": 0.5})
    assert list(shown("--group")["n"]) == [3]


# What repetitions of one experiment may differ in.
MAY_DIFFER = {
    *("seed", "preset", "tta", "kernels", "device", "device_name", "threads", "python_version"),
    *("num_parameters", "cpu_capability"),
    # The digest of the images depends on these.
    *("image_size", "strict", "image_shape", "classes"),
}


def test_runs_that_differ_in_what_decides_a_result_are_other_groups() -> None:
    for name in LOGGED:
        for seed, value in ((0, "8"), (1, "9")):
            # Named like a model, settings do not mix.
            log_run(**{"model": name, "seed": seed, name: value}, metrics={"val_accuracy": 0.5})
    groups = shown("--group", "--top", "1000").groupby("model")["n"].apply(list).to_dict()
    assert (groups.pop("8"), groups.pop("9")) == ([1], [1])  # where the models differ
    others = [name for name in LOGGED if name != "model"]
    assert groups == {name: [2] if name in MAY_DIFFER else [1, 1] for name in others}


@pytest.mark.parametrize("diverged", [{}, {"val_loss": math.nan}])
def test_a_diverged_seed_is_not_left_out_of_the_mean(diverged: dict[str, float]) -> None:
    log_run(seed=0, metrics={"val_accuracy": 0.8, "val_loss": 0.5})
    log_run(seed=1, metrics={"val_accuracy": 0.1} | diverged)
    sound = log_run("baseline", metrics={"val_accuracy": 0.7, "val_loss": 9})
    assert sound

    by_loss = shown("--group", "--metric", "val_loss")
    assert list(by_loss["model"]) == ["baseline", "cnn"]
    assert by_loss["val_loss_mean"].isna().tolist() == [False, True]
    assert by_loss["val_accuracy_mean"].tolist() == pytest.approx([0.7, 0.45])


@pytest.mark.parametrize(("metric", "best"), [("val_accuracy", "cnn"), ("val_loss", "baseline")])
def test_groups_are_ordered_by_the_metric_and_cut_at_the_top(metric: str, best: str) -> None:
    log_run("baseline", metrics={"val_accuracy": 0.8, "val_loss": 0.3})
    log_run("cnn", metrics={"val_accuracy": 0.9, "val_loss": 0.4})
    log_run("nonlinear")
    table = shown("--group", "--metric", metric)
    assert table["model"].iloc[0] == best
    assert table["model"].iloc[2] == "nonlinear"
    assert list(shown("--group", "--metric", metric, "--top", "1")["model"]) == [best]


def test_groups_exclude_the_latest_of_each_model() -> None:
    result = run_compare("--group", "--latest-per-model")
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2


class _Cells(HTMLParser):
    """Collect a table's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def _parse_html(text: str) -> pd.DataFrame:
    parser = _Cells()
    parser.feed(text)
    return pd.DataFrame(parser.rows[1:], columns=parser.rows[0])


def _parse_markdown(text: str) -> pd.DataFrame:
    header, rule, *rows = (
        [html.unescape(re.sub(r"\\(.)", r"\1", cell)).strip() for cell in line[1:-1].split(" | ")]
        for line in text.splitlines()
    )
    assert set(rule) == {"---"}
    return pd.DataFrame(rows, columns=header)


PARSERS: dict[str, Callable[[str], pd.DataFrame]] = {
    "csv": lambda text: pd.read_csv(StringIO(text)),
    "json": lambda text: pd.read_json(StringIO(text)),
    "markdown": _parse_markdown,
    "html": _parse_html,
}
GROUP_COLUMNS = {
    *GROUP_KEY,
    "num_parameters",
    "n",
    *(f"{metric}_{part}" for metric in METRICS for part in ("mean", "std")),
}


def test_every_format_is_offered() -> None:
    assert {"table", *PARSERS} == set(TABLE_FORMATS)


@pytest.mark.parametrize("output_format", PARSERS)
def test_every_format_parses_back_and_holds_all_columns(output_format: str) -> None:
    run_id = log_run(
        name="a | b <i> " + "long " * 20,
        lr="0.10",
        metrics=dict.fromkeys(METRICS, 0.5) | {"val_accuracy": 0.8712},
    )
    log_run(status="FAILED")

    runs = PARSERS[output_format](run_compare("--format", output_format).stdout)
    assert list(runs.columns) == COLUMNS
    assert len(runs) == 2
    assert runs["run_id"].iloc[0] == run_id
    assert list(runs["status"]) == ["FINISHED", "FAILED"]
    assert runs["run_name"].iloc[0].strip() == ("a | b <i> " + "long " * 20).strip()
    assert float(runs["val_accuracy"].iloc[0]) == pytest.approx(0.8712, abs=1e-12)
    assert float(runs["lr"].iloc[0]) == 0.1
    assert str(runs["num_parameters"].iloc[0]) == "8170"
    start = pd.to_datetime(runs["start_time"].iloc[0], utc=True)
    assert start == pd.Timestamp(mlflow.get_run(run_id).info.start_time, unit="ms", tz="UTC")

    groups = PARSERS[output_format](run_compare("--group", "--format", output_format).stdout)
    assert set(groups.columns) == GROUP_COLUMNS
    assert str(groups["n"].iloc[0]) == "1"


@pytest.mark.parametrize("output_format", ["markdown", "html"])
def test_what_is_missing_reads_as_a_dash_in_documents(output_format: str) -> None:
    log_run()
    text = run_compare("--format", output_format).stdout
    assert PARSERS[output_format](text)["val_accuracy"].iloc[0] == "-"
    assert "nan" not in text.lower()


@pytest.mark.parametrize("output_format", PARSERS)
def test_no_runs_make_an_empty_document(output_format: str) -> None:
    log_run()
    for options in ((), ("--group",), ("--latest-per-model",)):
        nothing = (*options, "--filter", "params.lr = '9'", "--format", output_format)
        result = run_compare(*nothing)
        assert result.exit_code == 0, result.output
        assert PARSERS[output_format](result.stdout).empty


@pytest.mark.parametrize("options", [(), ("--group",), ("--latest-per-model",)])
def test_an_empty_store_says_so(options: tuple[str, ...]) -> None:
    result = run_compare(*options)
    assert result.exit_code == 0
    assert result.stdout.startswith("No runs found")


HUGE = {
    "val_accuracy": 1.0,
    "test_accuracy": 1.0,
    "val_loss": 123_456.789,
    "test_loss": math.inf,
    "train_seconds": 1_234_567.8,
    "images_per_second": 12_345_678.9,
}


@pytest.mark.parametrize("model", ["cnn", "a-model-with-a-rather-long-name." * 4])
def test_the_table_of_runs_fits_a_terminal_and_cuts_no_cell(
    model: str, subtests: pytest.Subtests
) -> None:
    huge = {"epochs": 100_000, "num_parameters": 452_985_866, "seed": 2**32 - 1}
    run_id = log_run(model, metrics=HUGE, **huge)
    log_run(status="SCHEDULED", epochs=99_999, seed=3)
    expected = {
        "val_loss": "1.23e5",
        "test_loss": "inf",
        "train_seconds": "1.23e6",
        "images_per_second": "1.23e7",
    }
    for metric in METRICS:
        with subtests.test(metric):
            lines = table_lines("--metric", metric)
            assert max(map(cell_len, lines)) <= 80
            text = "\n".join(lines)
            assert "…" not in text
            for whole in (run_id[:8], "100.00", "4294967295", "100000", "SCHEDULED"):
                assert whole in text
            assert model in "".join(line.split(" ")[0] for line in lines)
            assert expected.get(metric, "100.00") in text


@pytest.mark.parametrize("model", ["cnn", "a-model-with-a-rather-long-name." * 4])
def test_the_table_of_groups_fits_a_terminal_and_cuts_no_cell(
    model: str, subtests: pytest.Subtests
) -> None:
    settings = {"epochs": 1000, "batch_size": 60_000, "lr": "0.0123456", "hidden_units": 4096}
    for seed in range(3):
        metrics = {name: value * (1 + seed) for name, value in HUGE.items()}
        metrics |= {"val_accuracy": seed / 2, "test_accuracy": seed / 2, "test_loss": seed}
        log_run(model, metrics=metrics, seed=seed, **settings)
        log_run(model, metrics=metrics, seed=seed)
    expected = {
        "val_loss": "2.47e5±1.23e5",
        "test_loss": "1.0000±1.0000",
        "train_seconds": "2.47e6±1.23e6",
    }
    for metric in METRICS:
        with subtests.test(metric):
            lines = table_lines("--group", "--metric", metric)
            assert max(map(cell_len, lines)) <= 80
            text = "\n".join(lines)
            assert "…" not in text
            for whole in ("50.00±50.00", "1000", "60000", "4096"):
                assert whole in text
            assert model in "".join(line.split(" ")[0] for line in lines)
            if METRICS[metric].lower_is_better:
                assert expected[metric] in text


@pytest.mark.parametrize("output_format", ["table", "csv", "markdown", "html"])
def test_an_infinite_loss_reads_as_such(output_format: str) -> None:
    log_run(metrics={"val_loss": math.inf})
    text = run_compare("--format", output_format, "--metric", "val_loss").stdout
    assert re.search(r"\binf\b", text)
    assert "1.79" not in text  # the largest float, which MLflow stores instead


def test_the_header_of_groups_reads_by_columns() -> None:
    log_run()
    log_run(hidden_units=11, val_size=4999)
    upper, lower = table_lines("--group")[:2]
    assert upper.split()[-2:] == ["hidden", "val"]
    assert lower.split()[-2:] == ["units", "size"]


UNSAFE = "<img src=x>\n| `a` [b](c) *d* &lt; \\| e\x1b[2J"


def test_markdown_shows_a_runs_name_as_text() -> None:
    log_run(name=UNSAFE)
    text = run_compare("--format", "markdown").stdout
    assert len(text.splitlines()) == 3
    assert "<" not in text
    assert re.search(r"(?<!\\)[`*\[]", text) is None
    cells = re.findall(r"(?:\\.|[^\\|])+", text.splitlines()[2])  # as GitHub splits them
    shown = html.unescape(re.sub(r"\\(.)", r"\1", cells[COLUMNS.index("run_name")]))
    assert shown.strip() == printable(UNSAFE)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\uff1d1"])
def test_a_csv_holds_no_formula_and_its_numbers_stay_numbers(name: str) -> None:
    log_run(name=name, metrics={"val_loss": -0.5})
    log_run(name="a=1")
    table = pd.read_csv(StringIO(run_compare("--format", "csv", "--metric", "val_loss").stdout))
    assert table["run_name"].tolist() == [f"'{name}", "a=1"]
    assert table["val_loss"][0] == -0.5


def test_a_models_name_cannot_move_the_cursor() -> None:
    log_run("net\x1b[2J\nnet")
    assert table_lines()[-1].startswith(r"net\x1b[2J\nnet")


def test_the_number_of_rows_may_be_large_but_not_absurd() -> None:
    run_id = log_run()
    assert run_ids("--top", "2147483647") == [run_id]
    for top in ("2147483648", "9" * 23, "9" * 5_000):
        assert run_compare("--top", top).exit_code == 2


def test_usual_numbers_are_shown_in_full_with_every_metric() -> None:
    metrics = {
        "val_accuracy": 0.87654,
        "val_loss": 0.34567,
        "test_accuracy": 0.86543,
        "test_loss": 0.35678,
        "train_seconds": 32.19,
        "images_per_second": 5125.4,
    }
    run_id = log_run("nonlinear", metrics=metrics)
    cells = table_lines()[-1].split()
    assert cells[:7] == ["nonlinear", "87.65", "0.3457", "86.54", "0.3568", "32.2", "5,125"]
    assert cells[7] == "8,170"
    assert cells[-1] == run_id[:8]


@pytest.mark.parametrize("model", ["[bold]net", "net[/]", ":smile:"])
def test_a_models_name_is_shown_as_it_is(model: str) -> None:
    log_run(model)
    assert table_lines()[-1].startswith(model)


@pytest.mark.parametrize("output_format", TABLE_FORMATS)
def test_the_output_file_holds_what_would_have_been_printed(
    tmp_path: Path, output_format: str
) -> None:
    log_run(metrics={"val_accuracy": 0.9})
    printed = run_compare("--format", output_format).stdout
    path = tmp_path / "new" / "comparison"
    result = run_compare("--format", output_format, "--output", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"Wrote {path}\n"
    assert path.read_text(encoding="utf-8") == printed


def test_where_a_relative_path_leads_is_said_in_full(store: Path) -> None:
    log_run()
    assert run_compare("--output", "table.md").stderr == f"Wrote {store / 'table.md'}\n"


# A file where a folder would have to be, and a folder where the file would.
@pytest.mark.parametrize("path", ["mlflow.db/file.csv", "."])
def test_a_path_that_cannot_be_written_is_named_in_one_line(tmp_path: Path, path: str) -> None:
    log_run()
    assert path in assert_one_line(run_compare("--output", path, "--log"))
    assert not MlflowClient().search_runs(["0", "1"], "tags.mlflow.runName = 'comparison'")


@pytest.fixture
def opened_run(store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run such as `mlflow run` opens for an entry point."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("test")
    run_id = client.create_run(experiment.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    return run_id


def logged_table(run_id: str) -> pd.DataFrame:
    names = {artifact.path for artifact in MlflowClient().list_artifacts(run_id)}
    assert names == {"comparison.json", "comparison.png"}
    picture = Path(
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="comparison.png")
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = mlflow.artifacts.load_dict(f"runs:/{run_id}/comparison.json")
    return pd.DataFrame(content["data"], columns=content["columns"])


def test_the_table_and_its_figure_are_logged_to_a_run_of_their_own() -> None:
    best = log_run(metrics={"val_accuracy": 0.9, "test_accuracy": 0.8, "train_seconds": 1})
    running = log_run(status="RUNNING")
    result = run_compare("--log")
    assert result.exit_code == 0, result.output

    run_id = result.stderr.split()[-1]
    assert run_id not in (best, running)
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    table = logged_table(run_id)
    assert list(table.columns) == COLUMNS
    assert list(table["run_id"]) == [best, running]
    # A comparison is not a training run, and is not compared in turn.
    assert run_ids() == [best, running]


def test_groups_are_logged_as_well() -> None:
    for seed in (0, 1):
        metrics = {"val_accuracy": 0.9, "test_accuracy": 0.8, "train_seconds": 1}
        log_run(seed=seed, metrics=metrics)
    log_run("baseline")
    result = run_compare("--group", "--log")
    assert result.exit_code == 0, result.output
    table = logged_table(result.stderr.split()[-1])
    assert set(table.columns) == GROUP_COLUMNS
    assert list(table["n"]) == [2, 1]


def test_the_run_that_mlflow_opened_is_continued(opened_run: str) -> None:
    log_run(metrics={"val_accuracy": 0.9})
    before = len(mlflow.search_runs(output_format="list"))
    result = run_compare("--log")
    assert result.exit_code == 0, result.output
    assert result.stderr.split()[-1] == opened_run
    assert len(logged_table(opened_run)) == 1
    assert len(mlflow.search_runs(output_format="list")) == before


@pytest.mark.parametrize("options", [(), ("--group",)])
def test_nothing_found_can_be_logged_too(options: tuple[str, ...]) -> None:
    result = run_compare("--log", *options)
    assert result.exit_code == 0, result.output
    assert logged_table(result.stderr.split()[-1]).empty


def log_models(*run_ids: str) -> None:
    """Give runs a model of their own, as far as its URI."""
    for run_id in run_ids:
        model = mlflow.create_external_model(name="model", source_run_id=run_id)
        MlflowClient().log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def test_the_id_in_the_table_leads_to_the_runs_model() -> None:
    first, second = log_run(), log_run()
    log_models(first, second)
    uri = models.model_uri(mlflow.get_run(second))
    assert query.model_uri(second[:8]) == query.model_uri(second) == uri
    assert query.model_uri(uri) == uri


@pytest.mark.parametrize("command", ["predict", "explore", "export"])
def test_an_id_that_is_no_runs_is_refused_in_one_line(command: str) -> None:
    arguments = ["--model-uri", "deadbeef", *(["--indices", "0"] if command == "predict" else [])]
    entry_point = getattr(import_module(f"entrypoints.{command}"), command)
    message = assert_one_line(CliRunner().invoke(entry_point, arguments))
    assert message == "Error: deadbeef is no run of this tracking store\n"


def test_the_beginning_of_several_ids_is_refused_with_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [mlflow.get_run(log_run()) for _ in range(2)]
    monkeypatch.setattr(mlflow, "search_runs", lambda **_: runs)
    with pytest.raises(CompareError, match=" and ".join(run.info.run_id for run in runs)):
        query.model_uri("deadbeef")
