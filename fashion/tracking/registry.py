"""Register the best model in MLflow's registry and maintain its champion alias."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_GIT_COMMIT

from fashion.analysis import tables
from fashion.data.dataset import FashionMNIST
from fashion.settings.comparison import Query
from fashion.settings.metrics import METRICS, SELECTING_METRICS
from fashion.settings.task import CHAMPION, HOMEPAGE, TRAIN_SIZE
from fashion.tracking.models import RegistryError, load, model_uri, verify
from fashion.tracking.query import runs
from fashion.training.evaluation import Evaluation

PREVIOUS = "previous-champion"
ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class Registration:
    """Result of a registration or rollback; of a dry run, what it would have been.

    Attributes:
        name: name of the registered model.
        run_id: the run that logged the model.
        version: version of the model; None if a dry run would create it.
        created: whether the version is new.
        champion: the version with the champion alias; None if it is the one that a dry run would
            create.
        reason: why that version is the champion, in one line.
    """

    name: str
    run_id: str
    version: str | None
    created: bool
    champion: str | None
    reason: str

    def __str__(self) -> str:
        verb = "registered" if self.created else "already registered"
        return (
            f"{self.name} version {self.version or '(new)'} {verb}, from run {self.run_id}\n"
            f"{CHAMPION} is version {self.champion or '(new)'}: {self.reason}"
        )


@dataclass(frozen=True)
class _Version:
    """A version of the registered model; number is empty for the one a dry run would create."""

    number: str
    tags: Mapping[str, str]
    description: str = ""


def register(
    name: str, query: Query, dataset: FashionMNIST, *, dry_run: bool = False
) -> Registration:
    """Register the best finished run of `query`; make it champion if it is the best version.

    The stored model is first loaded and evaluated on the test set. The alias moves only to a
    version that beats the current champion by `query.metric` on the same images.

    Raises:
        RegistryError: no run matches, or its stored model does not reproduce the logged metrics.
    """
    _check_name(name)
    client = MlflowClient()
    run = best_run(query)
    uri = model_uri(run)
    evaluation = verify(run, load(uri), dataset)
    tags = _version_tags(run)
    existing = _version_of(client, name, run)
    if dry_run:
        candidates = _candidates(client, name)
        if existing is None:
            candidates.append(_Version("", tags))
        best, reason = _choose(candidates, _by_alias(client, name, CHAMPION), query.metric)
        number = existing.number if existing else None
        return Registration(
            name, run.info.run_id, number, existing is None, best.number or None, reason
        )
    created = None if existing else _from_mlflow(mlflow.register_model(uri, name, tags=tags))
    # Another process may have registered the same run meanwhile: the first version stays.
    version = _version_of(client, name, run)
    assert version is not None
    if created is not None and created.number != version.number:
        client.delete_model_version(name, created.number)
        created = None
    if not version.description:
        card = _model_card(run, dataset, evaluation, query.metric)
        client.update_model_version(name, version.number, description=card)
    champion, reason = promote(client, name, query.metric)
    return Registration(
        name, run.info.run_id, version.number, created is not None, champion, reason
    )


def best_run(query: Query) -> Run:
    """Return the best finished run of `query` by its metric.

    Raises:
        RegistryError: no finished run has logged the metric.
    """
    table = runs(query)
    table = table[(table["status"] == "FINISHED") & table[query.metric].notna()]
    if table.empty:
        wanted = " or ".join(query.models)
        raise RegistryError(
            f"no finished {wanted} run has logged {query.metric}: train one first,"
            " with val_size above 0 (mlflow run . -e train -P model=cnn)"
        )
    return MlflowClient().get_run(table["run_id"].iloc[0])


def promote(client: MlflowClient, name: str, metric: str) -> tuple[str, str]:
    """Set the champion alias to the best version; return its number and a one-line reason.

    MLflow has no atomic compare-and-set for aliases, so the selection is repeated until nothing
    changes: of two concurrent registrations, the one that sets the alias last reads all versions
    once more and ends with the better one.

    Raises:
        RegistryError: no version has the metric.
    """
    moved_because = None
    while True:
        champion = _by_alias(client, name, CHAMPION)
        best, reason = _choose(_candidates(client, name), champion, metric)
        if champion is not None and best.number == champion.number:
            return best.number, moved_because or reason
        if champion is not None:
            _set_alias(client, name, PREVIOUS, champion.number)
        _set_alias(client, name, CHAMPION, best.number)
        moved_because = reason


def rollback(name: str) -> Registration:
    """Restore the previous champion and exclude the current one from future selection.

    Raises:
        RegistryError: there is no previous champion.
    """
    _check_name(name)
    client = MlflowClient()
    champion, previous = (_by_alias(client, name, alias) for alias in (CHAMPION, PREVIOUS))
    # They are the same version if a registration or a rollback was interrupted half way.
    if champion is None or previous is None or champion.number == previous.number:
        raise RegistryError(f"{name} has no {PREVIOUS} to roll back to")
    client.set_model_version_tag(name, champion.number, ROLLED_BACK, "true")
    _set_alias(client, name, CHAMPION, previous.number)
    client.delete_registered_model_alias(name, PREVIOUS)
    return Registration(
        name=name,
        run_id=previous.tags.get("run_id", ""),
        version=previous.number,
        created=False,
        champion=previous.number,
        reason=f"version {champion.number} was rolled back and will not be selected again",
    )


def _check_name(name: str) -> None:
    # Quotes would end the name in a search filter; MLflow rejects the other characters itself.
    if not name.strip() or re.search(r"""['"/:]""", name):
        raise RegistryError(f"{name!r} is not a valid name for a registered model")


def _from_mlflow(version: ModelVersion) -> _Version:
    # MLflow returns an int from a database and a str from a server.
    return _Version(str(version.version), version.tags, version.description or "")


def _search(client: MlflowClient, condition: str) -> list[_Version]:
    """Return the versions that match `condition`, oldest first."""
    found = client.search_model_versions(condition)
    return [_from_mlflow(v) for v in sorted(found, key=lambda version: int(version.version))]


def _version_of(client: MlflowClient, name: str, run: Run) -> _Version | None:
    found = _search(client, f"name = '{name}' and tags.run_id = '{run.info.run_id}'")
    return next(iter(found), None)


def _by_alias(client: MlflowClient, name: str, alias: str) -> _Version | None:
    try:
        return _from_mlflow(client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _set_alias(client: MlflowClient, name: str, alias: str, number: str) -> None:
    try:
        client.set_registered_model_alias(name, alias, number)
    except MlflowException:
        # MLflow checks whether the alias exists before it inserts it; if another process inserts it
        # in between, the insert fails. Now it exists and can be updated.
        client.set_registered_model_alias(name, alias, number)


def _candidates(client: MlflowClient, name: str) -> list[_Version]:
    """Return the versions that can become champion, oldest first."""
    return [v for v in _search(client, f"name = '{name}'") if ROLLED_BACK not in v.tags]


def _choose(
    candidates: Sequence[_Version], champion: _Version | None, metric: str
) -> tuple[_Version, str]:
    """Return the version to make champion, and why. Ties go to the older one."""
    images = "test_digest" if metric.startswith("test_") else "validation_digest"
    measured = [c for c in candidates if metric in c.tags and images in c.tags]

    def score(version: _Version) -> float:
        value = float(version.tags[metric])
        return -value if METRICS[metric].lower_is_better else value

    if champion is None:
        if not measured:
            raise RegistryError(f"no version has a {metric} to select a {CHAMPION} by")
        peers = [c for c in measured if c.tags[images] == measured[-1].tags[images]]
        return max(peers, key=score), f"first {CHAMPION}"
    peers = [c for c in measured if c.tags[images] == champion.tags.get(images)]
    if metric not in champion.tags or not peers:
        return champion, (
            f"it cannot be compared with other versions by {metric} on the same images"
        )
    best = max(peers, key=score)
    if score(best) <= score(champion):
        return champion, f"nothing beats its {metric} of {float(champion.tags[metric]):.4f}"
    return best, (
        f"its {metric} of {float(best.tags[metric]):.4f} beats version {champion.number}'s"
        f" {float(champion.tags[metric]):.4f}"
    )


def _version_tags(run: Run) -> dict[str, str]:
    tags = {"run_id": run.info.run_id}
    if MLFLOW_GIT_COMMIT in run.data.tags:
        tags["git_commit"] = run.data.tags[MLFLOW_GIT_COMMIT]
    for dataset_input in run.inputs.dataset_inputs if run.inputs else []:
        for tag in dataset_input.tags:
            if tag.key == MLFLOW_DATASET_CONTEXT:
                tags[f"{tag.value}_digest"] = dataset_input.dataset.digest
    return tags | {m: repr(run.data.metrics[m]) for m in SELECTING_METRICS if m in run.data.metrics}


def _model_card(run: Run, dataset: FashionMNIST, evaluation: Evaluation, metric: str) -> str:
    """Describe a version in Markdown, after Mitchell et al., "Model Cards" (arXiv:1810.03993)."""
    params, metrics = run.data.params, run.data.metrics
    predicted = evaluation.logits.argmax(dim=1)
    pairs = tables.confused_pairs(tables.confusion_matrix(dataset.test.labels, predicted), top=5)
    confused = "\n".join(f"- {pair}" for pair in pairs)
    measured = "\n".join(f"| {m} | {metrics[m]:.4f} |" for m in SELECTING_METRICS if m in metrics)
    selection = (
        "**on the test set**, so that its test metrics are optimistic"
        if metric.startswith("test_")
        else "on validation data"
    )
    # The UI keeps line breaks within a paragraph, so each paragraph is one line.
    paragraphs = [
        f"### {params['model']} for Fashion-MNIST",
        f"**Data.** [Fashion-MNIST]({HOMEPAGE}), {TRAIN_SIZE - int(params['val_size']):,} training"
        f" images, {int(params['val_size']):,} held out for validation (stratified, seed"
        f" {params['split_seed']}), {len(dataset.test):,} test images; all verified by SHA-256.",
        f"**Recipe.** {params['epochs']} epochs of {params['optimizer']}, lr {params['lr']}, batch"
        f" {params['batch_size']}, seed {params['seed']}, {params['hidden_units']} hidden units,"
        f" {int(params['num_parameters']):,} parameters. Run `{run.info.run_id}`.",
        f"**Metrics.** Selected by {metric}, {selection}. The test set was evaluated once by the"
        " run and once at registration, to verify the stored model.",
        f"| metric | value |\n| --- | --- |\n{measured}",
        f"**Most confused on the test set.**\n\n{confused}",
        "**Input and output.** float32 images of shape (N, 1, 28, 28) in [0, 1], light on black;"
        " logits of shape (N, 10).",
        "**Intended use.** Teaching, and comparing methods on this benchmark.",
        "**Limits.** It predicts one of ten classes for any input, and was trained on centred"
        " catalogue pictures of 28x28 pixels; photographs need the conversion that `predict`"
        " does, and accuracy on them is lower.",
    ]
    return "\n\n".join(paragraphs) + "\n"
