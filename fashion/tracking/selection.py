"""Select the run to register and the version to be champion.

Metrics are comparable only if they were measured on the same images.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking.fluent import _get_experiment_id

from fashion import advice
from fashion.data.dataset import Dataset
from fashion.errors import RegistryError, SettingError
from fashion.settings.comparison import Query
from fashion.settings.gate import Gate
from fashion.settings.metrics import METRICS
from fashion.settings.task import CHAMPION
from fashion.tracking.contest import CONTEST, between
from fashion.tracking.query import ALL, FINISHED, runs
from fashion.tracking.versions import FORCED, Version

# So many runs are asked for at first; more only if none of them can be registered.
FIRST_RUNS = 20
# So many versions are named in a message.
NAMED_VERSIONS = 5


def candidates(query: Query, champion: Version | None, dataset: Dataset) -> Iterator[Run]:
    """Yield the finished runs of `query` that can be compared with the champion, best first.

    They were measured on the images of the champion. Without one, those of the largest validation
    set come first.

    Raises:
        RegistryError: there is none.
    """
    if champion is not None and not champion.is_measured:
        champion = None
    images = champion.images(query.metric) if champion else ""
    if not images and query.metric.startswith("test_"):
        images = dataset.test.digest
    found = False
    for digest in [images] if images else _validation_digests(query, dataset):
        for run in _best_first(query, f"datasets.digest = '{digest}'"):
            found = True
            yield run
    if not found:
        raise _nothing_found(query, champion, dataset)


def _validation_digests(query: Query, dataset: Dataset) -> Iterator[str]:
    """Yield the digests of the validation sets of the runs of `query`, largest first."""
    for size in (
        _finished(query, sys.maxsize)["val_size"]
        .dropna()
        .drop_duplicates()
        .sort_values(ascending=False)
    ):
        if digest := _validation_digest(dataset, int(size)):
            yield digest


def _validation_digest(dataset: Dataset, size: int) -> str | None:
    """Return the digest of so many validation images, None where there can be none."""
    try:
        validation = dataset.split(size)[1]
    except SettingError:  # the size is of other data
        return None
    return validation.digest if validation is not None else None


def _best_first(query: Query, condition: str) -> Iterator[Run]:
    """Yield the finished runs of `query` that also match `condition`, best first."""
    narrowed = replace(query, filter_string=_both(query.filter_string, condition))
    client = MlflowClient()
    seen, top = 0, FIRST_RUNS
    while True:
        found = list(_finished(narrowed, top)["run_id"])
        for run_id in found[seen:]:
            yield client.get_run(run_id)
        if len(found) < top:
            return
        seen, top = len(found), 10 * top


def _finished(query: Query, top: int) -> pd.DataFrame:
    """Return the best finished runs of `query` that have logged its metric."""
    narrowed = replace(query, filter_string=_both(query.filter_string, FINISHED), top=top)
    table = runs(narrowed)
    return table[table[query.metric].notna()]


def _both(*conditions: str) -> str:
    return " and ".join(filter(None, conditions))


def _nothing_found(query: Query, champion: Version | None, dataset: Dataset) -> RegistryError:
    runs_of = f"finished {' or '.join(query.models)} run in {_searched(query)}"
    others = _finished(query, sys.maxsize)
    if others.empty:
        train = advice.command("train", model=next(iter(query.models), "cnn"))
        return RegistryError(
            f"no {runs_of} has logged {query.metric}: train one first, with val_size above 0"
            f" ({train}), or name another experiment"
        )
    images = champion.tags.get("validation_images", "") if champion else ""
    if champion is None or not images or query.metric.startswith("test_"):
        return RegistryError(
            f"no {runs_of} was measured on images of this dataset ({_left_out(others)})"
        )
    if _validation_digest(dataset, int(images)) == champion.images(query.metric):
        advised = f"train one with val_size={images}"
    else:
        advised = "train one on the champion's pictures, with its image_size"
    return RegistryError(
        f"no {runs_of} was measured on the {images} validation images of the {CHAMPION}, version"
        f" {champion.number} ({_left_out(others)}): {advised}, or register under another name"
    )


def _searched(query: Query) -> str:
    """Return where `query` searches, for a message."""
    if list(query.experiments) == [ALL]:
        return "any experiment"
    if query.experiments:
        return f"experiment {' or '.join(query.experiments)}"
    # MLflow has no public function for the active experiment.
    return f"experiment {mlflow.get_experiment(_get_experiment_id() or '0').name}"


def left_out(query: Query, chosen: Run, passed_over: Sequence[str]) -> str:
    """Say how many finished runs of `query` are better than the chosen one on other images.

    Args:
        query: where the run was chosen from.
        chosen: the run.
        passed_over: ids of the runs that could not be registered.

    Returns:
        One line, empty if there are none.
    """
    better = "<" if METRICS[query.metric].lower_is_better else ">"
    condition = f"metrics.{query.metric} {better} {chosen.data.metrics[query.metric]!r}"
    table = _finished(
        replace(query, filter_string=_both(query.filter_string, condition)), sys.maxsize
    )
    table = table[~table["run_id"].isin(passed_over)]
    return "" if table.empty else f"better on other images, so not compared: {_left_out(table)}"


def _left_out(table: pd.DataFrame) -> str:
    sizes = sorted({str(size) for size in table["val_size"].dropna()}, key=int)
    noun = "run" if len(table) == 1 else "runs"
    return f"{len(table)} {noun} with val_size {', '.join(sizes) or 'unknown'}"


@dataclass(frozen=True)
class Choice:
    """The version to make champion.

    Attributes:
        version: the version.
        reason: why, in one line.
        evidence: tags for the version that say why it replaces the champion.
    """

    version: Version
    reason: str
    evidence: Mapping[str, str] = field(default_factory=dict)


def choose(
    versions: Sequence[Version],
    champion: Version | None,
    metric: str,
    gate: Gate,
    registered: str | None = None,
) -> Choice:
    """Choose the champion among the versions, oldest first. Ties go to the older one.

    Only measured versions that were not rolled back can become champion, and only one that passes
    the gate: it is better than the present one on the same images, and that is not noise.

    Args:
        versions: all versions.
        champion: the present champion, if any.
        metric: what to compare them by.
        gate: when a better version replaces the champion.
        registered: number of the version that is made champion if the gate is forced.

    Raises:
        RegistryError: there is no champion, and no version can become it.
    """
    eligible = [v for v in versions if v.is_measured and not v.is_rolled_back and v.images(metric)]
    forced = next((v for v in eligible if gate.force and v.number == registered), None)
    if champion is not None and forced is not None:
        found = _forced(forced, champion, metric, newest=versions[-1].number)
    else:
        found = _choose(eligible, champion, metric, gate)
    unmeasured = [v.number for v in versions if not (v.is_measured or v.is_rolled_back)]
    if not unmeasured:
        return found
    more = len(unmeasured) - NAMED_VERSIONS
    named = ", ".join(unmeasured[:NAMED_VERSIONS]) + (f" and {more} more" if more > 0 else "")
    return replace(
        found,
        reason=f"{found.reason}; unverified, so not compared: version {named} (register has not"
        " measured it, or its tags were changed since)",
    )


def _forced(version: Version, champion: Version, metric: str, newest: str) -> Choice:
    if version.number == champion.number:
        return Choice(version, f"it was {CHAMPION} already")
    contest = between(champion, version, metric)
    if contest is None:
        reason = f"forced; it cannot be compared with version {champion.number}"
        return Choice(version, reason, {CONTEST: reason, FORCED: newest})
    evidence = {**contest.tags(f"forced to be {CHAMPION}"), FORCED: newest}
    return Choice(version, f"forced; {contest}", evidence)


def _choose(
    eligible: Sequence[Version], champion: Version | None, metric: str, gate: Gate
) -> Choice:
    if champion is None or champion.is_rolled_back:
        if not eligible:
            if champion is not None:
                return Choice(champion, "it was rolled back, but there is no other to replace it")
            raise RegistryError(f"no version has a {metric} to select a {CHAMPION} by")
        same = [v for v in eligible if champion and v.images(metric) == champion.images(metric)]
        best = max(same or _on_most_images(eligible, metric), key=lambda v: v.score(metric))
        if champion is not None:
            return Choice(best, f"version {champion.number} was rolled back")
        return Choice(best, f"first {CHAMPION}")
    if not champion.is_measured or not champion.images(metric):
        return Choice(
            champion, f"it cannot be compared with other versions by {metric} on the same images"
        )
    contests = [(v, contest) for v in eligible if (contest := between(champion, v, metric))]
    better = [(v, c) for v, c in contests if c.gain > 0 and not c.overruled]
    passed = [(v, contest) for v, contest in better if not contest.problem(gate)]
    ours = float(champion.tags[metric])
    if not better:
        forced = "it was forced, and since then " if any(c.overruled for _, c in contests) else ""
        return Choice(champion, f"{forced}nothing beats its {metric} of {ours:.4f}")
    if not passed:
        return Choice(
            champion,
            f"nothing beats its {metric} of {ours:.4f} by enough (min_p {gate.min_p:g}, min_gain"
            f" {gate.min_gain:g})",
        )
    best, contest = max(passed, key=lambda each: each[1].gain)
    return Choice(
        best,
        f"its {metric} of {float(best.tags[metric]):.4f} beats version {champion.number}'s"
        f" {ours:.4f}{contest.evidence}",
        contest.tags(f"became {CHAMPION}"),
    )


def _on_most_images(versions: Sequence[Version], metric: str) -> list[Version]:
    """Return the versions that were measured on the largest validation set; there is one."""
    largest = max(versions, key=lambda v: int(v.tags.get("validation_images", "0")))
    return [v for v in versions if v.images(metric) == largest.images(metric)]
