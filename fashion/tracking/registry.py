"""Register the best model in MLflow's registry and maintain its champion alias."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fashion.data.dataset import Dataset
from fashion.errors import RegistryError
from fashion.settings.comparison import Query
from fashion.settings.gate import DEFAULT_GATE, Gate
from fashion.settings.task import CHAMPION
from fashion.tracking import selection, versions
from fashion.tracking.card import model_card, registered_model
from fashion.tracking.contest import CONTEST, between
from fashion.tracking.evidence import TEST_RIGHT, Measurement, measure, to_registry
from fashion.tracking.models import model_uri
from fashion.tracking.store import START_IT, reason
from fashion.tracking.versions import CHALLENGER, PREVIOUS, ROLLED_BACK, Version


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
        challenge: how the registered version compares with the champion, in one line; empty if it
            is the champion.
        remarks: which better runs were not registered and why, in one line each.
    """

    name: str
    run_id: str
    version: str | None
    created: bool
    champion: str | None
    reason: str
    challenge: str = ""
    remarks: Sequence[str] = ()

    def __str__(self) -> str:
        verb = "registered" if self.created else "already registered"
        lines = [
            f"{self.name} version {self.version or '(new)'} {verb}, from run {self.run_id}",
            f"{CHAMPION} is version {self.champion or '(new)'}: {self.reason}",
        ]
        if self.challenge:
            lines.append(f"{CHALLENGER} is version {self.version or '(new)'}: {self.challenge}")
        lines += self.remarks
        return "\n".join(lines)


def register(
    name: str,
    query: Query,
    dataset: Dataset,
    *,
    gate: Gate = DEFAULT_GATE,
    dry_run: bool = False,
) -> Registration:
    """Register the best finished run of `query`; make it champion if it passes the gate.

    The stored model is first loaded and evaluated; the alias moves only to a version that beats the
    current champion by what was then measured, by `query.metric` on the same images, and not by
    chance. Otherwise the version gets the alias challenger, and in both cases the evidence. Runs
    whose model cannot be loaded, or does not give what the run logged, are passed over. Nothing is
    created before all of this has succeeded.

    Raises:
        RegistryError: no run can be registered, or the registry cannot be used.
    """
    _check_name(name)
    client = MlflowClient()
    with _refusals(name):
        champion, champion_tags = _measured_champion(client, name, dataset)
        found = _best(client, name, query, champion, dataset)
        run, tags, uri = found.run, found.measured.tags, model_uri(found.run)
        existing = versions.of_run(client, name, run, uri)
        if dry_run:
            version = existing or Version("", run.info.run_id, uri, tags)
            if not _is_complete(version):
                version = version.with_tags(tags)
            choice = _foresee(client, name, version, champion, query.metric, gate)
            return Registration(
                name,
                run.info.run_id,
                version.number or None,
                existing is None,
                choice.version.number or None,
                choice.reason,
                _challenge(choice.version, version, query.metric, gate)[0],
                found.remarks,
            )
        if champion is not None and champion_tags:
            _set_tags(client, name, champion.number, to_registry(champion_tags))
        created = None if existing else _create(client, name, run, uri, tags)
        # Another process may have registered the same run meanwhile: the first version stays.
        registered = versions.of_run(client, name, run, uri)
        assert registered is not None
        if created is not None and created != registered.number:
            client.delete_model_version(name, created)
            created = None
        if not _is_complete(registered):
            _set_tags(client, name, registered.number, to_registry(tags))
            registered = registered.with_tags(tags)
        if not registered.description:
            client.update_model_version(name, registered.number, description=found.card)
        if not client.get_registered_model(name).description:
            client.update_registered_model(name, registered_model(name, dataset.task))
        number, why = promote(client, name, query.metric, gate, registered.number)
        challenge = ""
        champion = versions.by_alias(client, name, CHAMPION)
        if champion is not None and champion.number != registered.number:
            challenge, evidence = _challenge(champion, registered, query.metric, gate)
            _set_tags(client, name, registered.number, evidence)
            versions.set_alias(client, name, CHALLENGER, registered.number)
        return Registration(
            name,
            run.info.run_id,
            registered.number,
            created is not None,
            number,
            why,
            challenge,
            found.remarks,
        )


def _is_complete(version: Version) -> bool:
    """Return whether `register` has measured a version, and recorded its predictions."""
    return version.is_measured and TEST_RIGHT in version.tags


def _challenge(
    champion: Version, version: Version, metric: str, gate: Gate
) -> tuple[str, dict[str, str]]:
    """Say why a version is not champion, in one line and in tags for it; both empty if it is."""
    if champion.number == version.number:
        return "", {}
    contest = between(champion, version, metric)
    if contest is None:
        problem = f"it cannot be compared with version {champion.number}"
        return problem, {CONTEST: f"{problem}: not {CHAMPION}"}
    problem = contest.problem(gate) or f"the {CHAMPION} has changed meanwhile"
    return f"{contest}: {problem}", contest.tags(f"not {CHAMPION}, {problem}")


@dataclass(frozen=True)
class _Found:
    """The run to register, and all that its version will have."""

    run: Run
    measured: Measurement
    card: str
    remarks: Sequence[str]


def _best(
    client: MlflowClient, name: str, query: Query, champion: Version | None, dataset: Dataset
) -> _Found:
    """Return the best run that can be registered.

    Raises:
        RegistryError: there is none.
    """
    rolled_back = {v.run_id: v.number for v in versions.all_of(client, name) if v.is_rolled_back}
    passed_over: dict[str, str] = {}
    for run in selection.candidates(query, champion, dataset):
        run_id = run.info.run_id
        if run_id in rolled_back:
            passed_over[run_id] = f"version {rolled_back[run_id]}, of run {run_id}, was rolled back"
            continue
        try:
            measured = measure(run, model_uri(run), dataset)
            card = model_card(run, dataset, measured, query.metric)
        except RegistryError as error:
            passed_over[run_id] = str(error)
            if champion is not None and champion.run_id == run_id:
                passed_over[run_id] += (
                    f"; it is the {CHAMPION}: delete version {champion.number} and register again"
                    " to replace it"
                )
            continue
        remarks = [f"passed over: {why}" for why in passed_over.values()]
        others = selection.left_out(query, run, list(passed_over))
        return _Found(run, measured, card, [*remarks, *([others] if others else [])])
    first, more = next(iter(passed_over.values())), len(passed_over) - 1
    others = f" (and {more} more {'run' if more == 1 else 'runs'})" if more else ""
    raise RegistryError(f"nothing to register: {first}{others}")


def _measured_champion(
    client: MlflowClient, name: str, dataset: Dataset
) -> tuple[Version | None, dict[str, str]]:
    """Return the champion, measured now if its tags are not those of a complete measurement.

    Returns:
        The champion, if any, and the tags to set in the registry. They are empty if the champion
        was measured before, or cannot be.
    """
    champion = versions.by_alias(client, name, CHAMPION)
    if champion is None or _is_complete(champion) or champion.is_rolled_back:
        return champion, {}
    try:
        run = client.get_run(champion.run_id)
        uri = f"models:/{name}/{champion.number}"
        tags = dict(measure(run, uri, dataset, champion.source).tags)
    except (RegistryError, MlflowException):  # it was registered by hand
        return champion, {}
    return champion.with_tags(tags), tags


def _foresee(
    client: MlflowClient,
    name: str,
    version: Version,
    champion: Version | None,
    metric: str,
    gate: Gate,
) -> selection.Choice:
    """Return what would be chosen once `version` and the champion's measurement are recorded."""
    known = {v.number: v for v in versions.all_of(client, name)}
    if champion is not None:
        known[champion.number] = champion
    # The new one, which has no number yet, comes last.
    everything = list((known | {version.number: version}).values())
    return selection.choose(everything, champion, metric, gate, version.number)


def _create(client: MlflowClient, name: str, run: Run, uri: str, tags: Mapping[str, str]) -> str:
    """Create a version and return its number."""
    try:
        return str(mlflow.register_model(uri, name, tags=to_registry(tags)).version)
    except MlflowException:
        # After creating the version, MLflow marks the logged model. This may not be allowed.
        version = versions.of_run(client, name, run, uri)
        if version is None:
            raise
        return version.number


def _set_tags(client: MlflowClient, name: str, number: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)


def promote(
    client: MlflowClient, name: str, metric: str, gate: Gate, registered: str | None = None
) -> tuple[str, str]:
    """Set the champion alias to the best version; return its number and a one-line reason.

    MLflow has no atomic compare-and-set for aliases, so the selection is repeated until nothing
    changes: of two concurrent registrations, the one that sets the alias last reads all versions
    once more and ends with the better one. If a rollback has barred that one meanwhile, it is
    replaced too.

    Args:
        client: MLflow's.
        name: name of the registered model.
        metric: what to compare versions by.
        gate: when a better version replaces the champion.
        registered: number of the version that becomes champion if the gate is forced.

    Raises:
        RegistryError: no version has the metric.
    """
    moved_because = None
    while True:
        champion = versions.by_alias(client, name, CHAMPION)
        choice = selection.choose(versions.all_of(client, name), champion, metric, gate, registered)
        best = choice.version
        if champion is not None:
            # Of two processes that force one version each, neither does so twice.
            forced = gate.force and moved_because and not champion.is_rolled_back
            if best.number == champion.number or forced:
                _drop_challenger(client, name, champion.number)
                return champion.number, moved_because or choice.reason
            if not champion.is_rolled_back:
                versions.set_alias(client, name, PREVIOUS, champion.number)
        _set_tags(client, name, best.number, choice.evidence)
        versions.set_alias(client, name, CHAMPION, best.number)
        moved_because = choice.reason


def _drop_challenger(client: MlflowClient, name: str, champion: str) -> None:
    """Delete the alias challenger if it is at the champion."""
    challenger = versions.by_alias(client, name, CHALLENGER)
    if challenger is not None and challenger.number == champion:
        client.delete_registered_model_alias(name, CHALLENGER)


def rollback(name: str) -> Registration:
    """Restore the previous champion and exclude the current one from future selection.

    The current one is marked first. Whoever sets the alias reads the mark afterwards, here and in
    `promote`, so that the last to set it does not leave it at a version that was rolled back.

    Raises:
        RegistryError: there is no previous champion, or the registry cannot be used.
    """
    _check_name(name)
    client = MlflowClient()
    with _refusals(name):
        champion, previous = (
            versions.by_alias(client, name, alias) for alias in (CHAMPION, PREVIOUS)
        )
        # They are the same version if a registration or a rollback was interrupted half way.
        if (
            champion is None
            or previous is None
            or champion.number == previous.number
            or previous.is_rolled_back
        ):
            raise RegistryError(f"{name} has no {PREVIOUS} to roll back to")
        client.set_model_version_tag(name, champion.number, ROLLED_BACK, "true")
        while (now := versions.by_alias(client, name, CHAMPION)) is None or now.is_rolled_back:
            if now is not None and now.number == previous.number:
                raise RegistryError(f"version {now.number} was rolled back meanwhile, too")
            versions.set_alias(client, name, CHAMPION, previous.number)
        client.delete_registered_model_alias(name, PREVIOUS)
        _drop_challenger(client, name, now.number)
        return Registration(
            name=name,
            run_id=now.run_id,
            version=now.number,
            created=False,
            champion=now.number,
            reason=f"version {champion.number} was rolled back and will not be selected again",
        )


def _check_name(name: str) -> None:
    # Quotes would end the name in a search filter; MLflow rejects the other characters itself.
    if not name.strip() or re.search(r"""['"/:]""", name):
        raise RegistryError(f"{name!r} is not a valid name for a registered model")


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Turn MLflow's errors into a one-line RegistryError with advice."""
    try:
        yield
    except MlflowException as error:
        advice = {
            "PERMISSION_DENIED": f": ask for permission to edit {name}, or choose another name",
            "RESOURCE_DOES_NOT_EXIST": ": it was deleted meanwhile; try again",
            "TEMPORARILY_UNAVAILABLE": f": {START_IT}",
            "FEATURE_DISABLED": ": set MLFLOW_REGISTRY_URI to a database or a server, or unset it",
        }.get(error.error_code, "")
        raise RegistryError(
            f"the model registry cannot be used ({reason(error)}){advice}"
        ) from error
