"""Read and change the versions of a registered model and their aliases."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from torch import Tensor

from fashion.settings.metrics import score
from fashion.tracking.evidence import (
    TEST_RIGHT,
    VALIDATION_RIGHT,
    from_registry,
    is_measured,
    unpacked,
)

PREVIOUS = "previous-champion"
# The version that was registered last, unless it is the champion.
CHALLENGER = "challenger"
ROLLED_BACK = "rolled_back"
# When a version was forced to be champion, the number of the newest: those up to it are overruled.
FORCED = "forced"


@dataclass(frozen=True)
class Version:
    """A version of the registered model.

    Attributes:
        number: its number; empty for the one that a dry run would create.
        run_id: the run that logged the model; empty if none did.
        source: URI of the logged model.
        tags: its tags, those of its measurement one by one.
        description: the model card; empty if there is none.
    """

    number: str
    run_id: str
    source: str
    tags: Mapping[str, str]
    description: str = ""

    @property
    def is_measured(self) -> bool:
        """Whether `register` has measured it, and nobody has changed what was measured."""
        return is_measured(self.tags, self.source)

    @property
    def is_rolled_back(self) -> bool:
        return ROLLED_BACK in self.tags

    def overrules(self, other: "Version") -> bool:
        """Whether it was forced to be champion when `other` was registered already."""
        newest = self.tags.get(FORCED, "")
        return newest.isdecimal() and other.number.isdecimal() and int(other.number) <= int(newest)

    def images(self, metric: str) -> str:
        """Return the digest of the images that `metric` was measured on; empty if of none."""
        context = "test" if metric.startswith("test_") else "validation"
        return self.tags.get(f"{context}_digest", "") if metric in self.tags else ""

    def right(self, metric: str) -> Tensor | None:
        """Return which of them it classifies correctly: bool, shape (N,); None if that is unknown.

        A version that `register` measured before it recorded this has to be measured again.
        """
        text = self.tags.get(TEST_RIGHT if metric.startswith("test_") else VALIDATION_RIGHT)
        return unpacked(text) if text is not None else None

    def score(self, metric: str) -> float:
        """Return the metric, negative if lower is better."""
        return score(metric, float(self.tags[metric]))

    def with_tags(self, tags: Mapping[str, str]) -> "Version":
        return replace(self, tags={**self.tags, **tags})


def _from_mlflow(version: ModelVersion) -> Version:
    # MLflow returns an int from a database and a str from a server.
    return Version(
        str(version.version),
        version.run_id or "",
        version.source or "",
        from_registry(version.tags),
        version.description or "",
    )


def _search(client: MlflowClient, condition: str) -> list[Version]:
    """Return the versions that match `condition`, oldest first."""
    found = client.search_model_versions(condition)
    return [_from_mlflow(v) for v in sorted(found, key=lambda version: int(version.version))]


def all_of(client: MlflowClient, name: str) -> list[Version]:
    """Return all versions, oldest first; none if there is no such model."""
    return _search(client, f"name = '{name}'")


def of_run(client: MlflowClient, name: str, run: Run, uri: str) -> Version | None:
    """Return the oldest version of the model at `uri`, which `run` logged."""
    found = _search(client, f"name = '{name}' and run_id = '{run.info.run_id}'")
    return next((version for version in found if version.source == uri), None)


def by_alias(client: MlflowClient, name: str, alias: str) -> Version | None:
    """Return the version with an alias, if any."""
    # A server with accounts answers 403 for a model that does not exist.
    if not client.search_registered_models(f"name = '{name}'", max_results=1):
        return None
    try:
        return _from_mlflow(client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def set_alias(client: MlflowClient, name: str, alias: str, number: str) -> None:
    """Move an alias to a version."""
    try:
        client.set_registered_model_alias(name, alias, number)
    except MlflowException:
        # MLflow checks whether the alias exists before it inserts it; if another process inserts it
        # in between, the insert fails. Now it exists and can be updated.
        client.set_registered_model_alias(name, alias, number)
