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
from torch import nn

from fashion import engine, report
from fashion.compare import Query, lower_is_better, runs
from fashion.data import HOMEPAGE, TRAIN_SIZE, FashionMNIST
from fashion.engine import Evaluation
from fashion.errors import FashionError

MODEL_NAME = "fashion-mnist-cnn"
CHAMPION = "champion"
PREVIOUS = "previous-champion"
ROLLED_BACK = "rolled_back"
METRICS = ("val_accuracy", "val_loss", "test_accuracy", "test_loss")
# How far a loaded model's loss and accuracy may lie from those of its run. Other thread counts
# and processors sum in another order; a wrong or damaged model is off by far more.
TOLERANCE = 1e-4


class RegistryError(FashionError):
    """Nothing can be registered, or the alias cannot be moved."""


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
class _Candidate:
    """A version, or in a dry run the version to be, with the tags that the choice reads."""

    version: str | None
    tags: Mapping[str, str]


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
            candidates.append(_Candidate(None, tags))
        best, reason = _choose(candidates, _champion(client, name), query.metric)
        number = existing.version if existing else None
        return Outcome(name, run.info.run_id, number, existing is None, best.version, reason)
    created = None if existing else mlflow.register_model(uri, name, tags=tags)
    # Another process may have registered the same run meanwhile: its first version stays.
    version = _version_of(client, name, run)
    assert version is not None
    if created is not None and created.version != version.version:
        client.delete_model_version(name, created.version)
        created = None
    if not version.description:
        card = _model_card(run, dataset, evaluation, query.metric)
        client.update_model_version(name, version.version, description=card)
    champion, reason = promote(client, name, query.metric)
    return Outcome(name, run.info.run_id, version.version, created is not None, champion, reason)


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


def model_uri(run: Run) -> str:
    """Return the URI of the model that `run` logged.

    Raises:
        RegistryError: it logged none.
    """
    models = run.outputs.model_outputs if run.outputs else []
    if not models:
        raise RegistryError(f"run {run.info.run_id} has logged no model")
    return f"models:/{models[-1].model_id}"


def load(uri: str) -> nn.Module:
    """Load a model from the tracking store or the registry, ready to predict on the CPU.

    Args:
        uri: for example models:/fashion-mnist-cnn@champion, or models:/m-... for a run's model.

    Raises:
        RegistryError: there is no such model, or its files are missing or damaged.
    """
    try:
        return mlflow.pytorch.load_model(uri)
    except (MlflowException, OSError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RegistryError(f"{uri} cannot be loaded: {reason}") from error


def verify(run: Run, model: nn.Module, dataset: FashionMNIST) -> Evaluation:
    """Evaluate a stored model on the test set and return what was measured.

    Raises:
        RegistryError: loss or accuracy differ from what the run logged by more than `TOLERANCE`.
    """
    evaluation = engine.evaluate(model, dataset.test)
    measured = {"test_loss": evaluation.loss, "test_accuracy": evaluation.accuracy}
    for metric, value in measured.items():
        logged = run.data.metrics.get(metric)
        # Not "difference > tolerance", which a NaN would pass.
        if logged is None or not abs(value - logged) <= TOLERANCE:
            raise RegistryError(
                f"the stored model of run {run.info.run_id} gives {metric} {value:.6f}, but the"
                f" run logged {'none' if logged is None else f'{logged:.6f}'}: not registered"
            )
    return evaluation


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
        champion = _champion(client, name)
        best, reason = _choose(_candidates(client, name), champion, metric)
        assert best.version is not None
        if champion is not None and best.version == champion.version:
            return best.version, moved_because or reason
        if champion is not None:
            client.set_registered_model_alias(name, PREVIOUS, champion.version)
        client.set_registered_model_alias(name, CHAMPION, best.version)
        moved_because = reason


def rollback(name: str) -> Outcome:
    """Make the previous champion champion again, and bar today's from being chosen anew.

    Raises:
        RegistryError: there is no previous champion.
    """
    _check_name(name)
    client = MlflowClient()
    champion, previous = _champion(client, name), _by_alias(client, name, PREVIOUS)
    # They are one version where a registration or a rollback was cut off half way.
    if champion is None or previous is None or champion.version == previous.version:
        raise RegistryError(f"{name} has no {PREVIOUS} to go back to")
    client.set_model_version_tag(name, champion.version, ROLLED_BACK, "true")
    client.set_registered_model_alias(name, CHAMPION, previous.version)
    client.delete_registered_model_alias(name, PREVIOUS)
    return Outcome(
        name=name,
        run_id=previous.tags.get("run_id", ""),
        version=previous.version,
        created=False,
        champion=previous.version,
        reason=f"version {champion.version} was rolled back and will not be chosen again",
    )


def _check_name(name: str) -> None:
    # Quotes would end the name in a search; MLflow itself refuses the other characters.
    if not name.strip() or re.search(r"""['"/:]""", name):
        raise RegistryError(f"{name!r} is no name for a registered model")


def _version_of(client: MlflowClient, name: str, run: Run) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{name}' and tags.run_id = '{run.info.run_id}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    return _by_alias(client, name, CHAMPION)


def _candidates(client: MlflowClient, name: str) -> list[_Candidate]:
    """Return the versions that may become champion, oldest first."""
    versions = client.search_model_versions(f"name = '{name}'")
    return [
        _Candidate(version.version, version.tags)
        for version in sorted(versions, key=lambda version: int(version.version))
        if ROLLED_BACK not in version.tags
    ]


def _choose(
    candidates: Sequence[_Candidate], champion: ModelVersion | None, metric: str
) -> tuple[_Candidate, str]:
    """Return the candidate that deserves the alias, and why. Ties go to the older one."""
    images = "test_digest" if metric.startswith("test_") else "validation_digest"
    measured = [c for c in candidates if metric in c.tags and images in c.tags]

    def merit(candidate: _Candidate | ModelVersion) -> float:
        value = float(candidate.tags[metric])
        return -value if lower_is_better(metric) else value

    if champion is None:
        if not measured:
            raise RegistryError(f"no version has a {metric} to choose a {CHAMPION} by")
        peers = [c for c in measured if c.tags[images] == measured[-1].tags[images]]
        return max(peers, key=merit), f"first {CHAMPION}"
    stays = _Candidate(champion.version, champion.tags)
    peers = [c for c in measured if c.tags[images] == champion.tags.get(images)]
    if metric not in champion.tags or not peers:
        return stays, f"it cannot be compared: nothing else was measured by {metric} on its images"
    best = max(peers, key=merit)
    if merit(best) <= merit(champion):
        return stays, f"nothing beats its {metric} of {float(champion.tags[metric]):.4f}"
    return best, (
        f"its {metric} of {float(best.tags[metric]):.4f} beats version {champion.version}'s"
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
    return tags | {m: repr(run.data.metrics[m]) for m in METRICS if m in run.data.metrics}


def _model_card(run: Run, dataset: FashionMNIST, evaluation: Evaluation, metric: str) -> str:
    """Describe a version in Markdown, after Mitchell et al., "Model Cards" (arXiv:1810.03993)."""
    params, metrics = run.data.params, run.data.metrics
    predicted = evaluation.logits.argmax(dim=1)
    pairs = report.confused_pairs(report.confusion_matrix(dataset.test.labels, predicted), top=5)
    confused = "\n".join(f"- {pair}" for pair in pairs)
    measured = "\n".join(f"| {m} | {metrics[m]:.4f} |" for m in METRICS if m in metrics)
    selection = (
        "**on the test set**, so that its test metrics are optimistic"
        if metric.startswith("test_")
        else "on validation data"
    )
    return f"""\
### {params["model"]} for Fashion-MNIST

**Data.** [Fashion-MNIST]({HOMEPAGE}), {TRAIN_SIZE - int(params["val_size"]):,} training images,
{int(params["val_size"]):,} held out for validation (stratified, seed {params["split_seed"]}),
{len(dataset.test):,} test images; all verified by SHA-256.

**Recipe.** {params["epochs"]} epochs of {params["optimizer"]}, lr {params["lr"]}, batch
{params["batch_size"]}, seed {params["seed"]}, {params["hidden_units"]} hidden units,
{int(params["num_parameters"]):,} parameters. Run `{run.info.run_id}`.

**Metrics.** Selected by {metric}, {selection}. The test set was read once by the run and once more
here, to check that the stored model gives what the run logged.

| metric | value |
| --- | --- |
{measured}

**Most confused on the test set.**

{confused}

**Input and output.** float32 images of shape (N, 1, 28, 28) in [0, 1], light on black; logits of
shape (N, 10).

**Intended use.** Teaching, and comparing methods on this benchmark.

**Limits.** It knows ten classes of centred catalogue pictures at 28x28 and answers with one of them
whatever it is shown; photographs need the conversion that `predict` does, and lose accuracy.
"""
