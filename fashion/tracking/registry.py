"""Register the best model and name its champion: the one module that knows MLflow's registry."""

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
from fashion.settings.metrics import METRICS, SELECTING_METRICS
from fashion.settings.task import HOMEPAGE, TRAIN_SIZE
from fashion.tracking.models import RegistryError, load, model_uri, verify
from fashion.tracking.query import Query, runs
from fashion.training.evaluation import Evaluation

MODEL_NAME = "fashion-mnist-cnn"
CHAMPION = "champion"
PREVIOUS = "previous-champion"
ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class Outcome:
    """What was done, or in a dry run would be done.

    Attributes:
        name: the registered model.
        run_id: the run whose model it is about.
        version: the model's version; None where a dry run would create one.
        created: whether the version is new.
        champion: the version that the alias names now; None where a dry run would move it to the
            version it would create.
        reason: why the alias names that version, in one line.
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
    """A version of the registered model; in a dry run also the one to be, whose number is empty."""

    number: str
    tags: Mapping[str, str]
    description: str = ""


def register(name: str, query: Query, dataset: FashionMNIST, *, dry_run: bool = False) -> Outcome:
    """Register the best finished run that `query` finds; make it champion if it is the best.

    Its model is first loaded back from the store and evaluated on the test set. The alias moves
    only to a version that beats today's champion by `query.metric` on the same images.

    Raises:
        RegistryError: there is no such run, or its stored model does not give what the run logged.
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
        return Outcome(name, run.info.run_id, number, existing is None, best.number or None, reason)
    created = None if existing else _from_mlflow(mlflow.register_model(uri, name, tags=tags))
    # Another process may have registered the same run meanwhile: its first version stays.
    version = _version_of(client, name, run)
    assert version is not None
    if created is not None and created.number != version.number:
        client.delete_model_version(name, created.number)
        created = None
    if not version.description:
        card = _model_card(run, dataset, evaluation, query.metric)
        client.update_model_version(name, version.number, description=card)
    champion, reason = promote(client, name, query.metric)
    return Outcome(name, run.info.run_id, version.number, created is not None, champion, reason)


def best_run(query: Query) -> Run:
    """Return the best finished run by `query.metric`.

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
    """Point the alias at the best version; return that version and the reason, in one line.

    MLflow cannot compare and set an alias in one step. So the choice is repeated until it changes
    nothing: of two registrations at once, the one that writes the alias last then reads all
    versions once more, and leaves the better one.

    Raises:
        RegistryError: no version was measured by `metric`.
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


def rollback(name: str) -> Outcome:
    """Make the previous champion champion again, and bar today's from being chosen anew.

    Raises:
        RegistryError: there is no previous champion.
    """
    _check_name(name)
    client = MlflowClient()
    champion, previous = (_by_alias(client, name, alias) for alias in (CHAMPION, PREVIOUS))
    # They are one version where a registration or a rollback was cut off half way.
    if champion is None or previous is None or champion.number == previous.number:
        raise RegistryError(f"{name} has no {PREVIOUS} to go back to")
    client.set_model_version_tag(name, champion.number, ROLLED_BACK, "true")
    _set_alias(client, name, CHAMPION, previous.number)
    client.delete_registered_model_alias(name, PREVIOUS)
    return Outcome(
        name=name,
        run_id=previous.tags.get("run_id", ""),
        version=previous.number,
        created=False,
        champion=previous.number,
        reason=f"version {champion.number} was rolled back and will not be chosen again",
    )


def _check_name(name: str) -> None:
    # Quotes would end the name in a search; MLflow itself refuses the other characters.
    if not name.strip() or re.search(r"""['"/:]""", name):
        raise RegistryError(f"{name!r} is no name for a registered model")


def _from_mlflow(version: ModelVersion) -> _Version:
    # A number is an int where MLflow reads a database, and a str where it asks a server.
    return _Version(str(version.version), version.tags, version.description or "")


def _search(client: MlflowClient, condition: str) -> list[_Version]:
    """Return the versions that fulfil `condition`, oldest first."""
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
        # MLflow looks whether the alias exists before it adds it; when another process adds it in
        # between, the database refuses ours. By now it exists and can be moved.
        client.set_registered_model_alias(name, alias, number)


def _candidates(client: MlflowClient, name: str) -> list[_Version]:
    """Return the versions that may become champion, oldest first."""
    return [v for v in _search(client, f"name = '{name}'") if ROLLED_BACK not in v.tags]


def _choose(
    candidates: Sequence[_Version], champion: _Version | None, metric: str
) -> tuple[_Version, str]:
    """Return the version that deserves the alias, and why. Ties go to the older one."""
    images = "test_digest" if metric.startswith("test_") else "validation_digest"
    measured = [c for c in candidates if metric in c.tags and images in c.tags]

    def merit(version: _Version) -> float:
        value = float(version.tags[metric])
        return -value if METRICS[metric].lower_is_better else value

    if champion is None:
        if not measured:
            raise RegistryError(f"no version has a {metric} to choose a {CHAMPION} by")
        peers = [c for c in measured if c.tags[images] == measured[-1].tags[images]]
        return max(peers, key=merit), f"first {CHAMPION}"
    peers = [c for c in measured if c.tags[images] == champion.tags.get(images)]
    if metric not in champion.tags or not peers:
        return champion, (
            f"it cannot be compared: nothing else was measured by {metric} on its images"
        )
    best = max(peers, key=merit)
    if merit(best) <= merit(champion):
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
    # The UI breaks a line wherever the text does: a paragraph is one line.
    paragraphs = [
        f"### {params['model']} for Fashion-MNIST",
        f"**Data.** [Fashion-MNIST]({HOMEPAGE}), {TRAIN_SIZE - int(params['val_size']):,} training"
        f" images, {int(params['val_size']):,} held out for validation (stratified, seed"
        f" {params['split_seed']}), {len(dataset.test):,} test images; all verified by SHA-256.",
        f"**Recipe.** {params['epochs']} epochs of {params['optimizer']}, lr {params['lr']}, batch"
        f" {params['batch_size']}, seed {params['seed']}, {params['hidden_units']} hidden units,"
        f" {int(params['num_parameters']):,} parameters. Run `{run.info.run_id}`.",
        f"**Metrics.** Selected by {metric}, {selection}. The test set was read once by the run and"
        " once more here, to check that the stored model gives what the run logged.",
        f"| metric | value |\n| --- | --- |\n{measured}",
        f"**Most confused on the test set.**\n\n{confused}",
        "**Input and output.** float32 images of shape (N, 1, 28, 28) in [0, 1], light on black;"
        " logits of shape (N, 10).",
        "**Intended use.** Teaching, and comparing methods on this benchmark.",
        "**Limits.** It knows ten classes of centred catalogue pictures of 28x28 pixels and answers"
        " with one of them whatever it is shown; photographs need the conversion that `predict`"
        " does, and lose accuracy.",
    ]
    return "\n\n".join(paragraphs) + "\n"
