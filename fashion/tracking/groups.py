"""Train a list of experiments as children of one run, and continue where that was interrupted.

The parent's folder holds the list, and the run of each experiment that was begun, until all have
finished and what is computed from them is logged.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import mlflow

from fashion import advice
from fashion.data.dataset import Dataset
from fashion.files import replacing
from fashion.settings.experiment import Experiment
from fashion.settings.tags import CHANGES_TAG
from fashion.tracking import checkpoint, resumption, runs, store, training
from fashion.tracking.checkpoint import CheckpointError
from fashion.tracking.environment import code
from fashion.training import distributed


@dataclass
class Group:
    """The children of one comparison.

    Attributes:
        entry_point: the command that trains them and computes the rest.
        asked: settings of the experiment that was asked for, by name.
        seeds: number of seeds of each model.
        experiments: settings of each child, in the order of training.
        code: `environment.code` of the process that began.
        children: ids of the children's runs, as far as they were begun.
        changes: changes of the code that the user has allowed.
        tags: tags that the user gave, of the parent and the children.
    """

    entry_point: str
    asked: dict[str, Any]
    seeds: int
    experiments: list[dict[str, Any]]
    code: dict[str, str] = field(default_factory=code)
    children: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


def plan(
    entry_point: str, asked: Experiment, seeds: int, experiments: Sequence[Experiment]
) -> Group:
    """Return a group that is not begun yet."""
    return Group(entry_point, asked.to_dict(), seeds, [each.to_dict() for each in experiments])


def load(run_id: str, entry_point: str, given: Mapping[str, Any], seeds: int = 1) -> Group:
    """Return the unfinished group of a parent run.

    Args:
        run_id: the parent.
        entry_point: the command that is to continue it.
        given: settings that must equal those asked for.
        seeds: number of seeds given, 1 for the group's own.

    Raises:
        CheckpointError: another command began it, or with other settings.
    """
    group = _read(run_id)
    if group.entry_point != entry_point:
        raise CheckpointError(
            f"run {run_id} was started by {group.entry_point}: continue with"
            f" {advice.command(group.entry_point, resume=run_id)}"
        )
    given = {**given, "seeds": seeds} if seeds > 1 else given
    resumption.refuse_changes(run_id, {**group.asked, "seeds": group.seeds}, given)
    return group


def asked_for(run_id: str) -> Experiment:
    """Return the experiment of an unfinished run, or the one that a group was asked for.

    Raises:
        CheckpointError: there is no such run here, or another version of this project wrote it.
    """
    if checkpoint.is_group(run_id):
        return resumption.experiment_of(_read(run_id).asked)
    return resumption.experiment_of(checkpoint.load(run_id)["experiment"])


def continuation(run_id: str) -> str:
    """Return the command that continues an unfinished run; empty if there is none of its own.

    A child of an unfinished group has none: its parent is continued.

    Raises:
        CheckpointError: the plan of a group is damaged.
    """
    if checkpoint.is_group(run_id):
        return advice.command(_read(run_id).entry_point, resume=run_id)
    if (checkpoint.folder(run_id) / checkpoint.SWEEP).is_file():
        return advice.command("sweep", resume=run_id)
    parents = filter(checkpoint.is_group, checkpoint.unfinished())
    if not checkpoint.exists(run_id) or any(run_id in _read(each).children for each in parents):
        return ""
    return advice.command("train", resume=run_id)


def _read(run_id: str) -> Group:
    path = checkpoint.folder(run_id) / checkpoint.GROUP
    try:
        return Group(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: delete its folder") from error


def _save(run_id: str, group: Group) -> None:
    with replacing(checkpoint.folder(run_id) / checkpoint.GROUP) as path:
        path.write_text(json.dumps(asdict(group)), encoding="utf-8")


@contextmanager
def completed(
    group: Group,
    name: str,
    dataset: Dataset,
    run_id: str = "",
    *,
    tags: Mapping[str, str] | None = None,
    system_metrics: bool = False,
    allow_changes: bool = False,
) -> Iterator[tuple[str, list[str]]]:
    """Train what is left of a group; within the block its run is open and all children are there.

    Args:
        group: what to train.
        name: name of a new parent run.
        dataset: the verified dataset.
        run_id: the parent run to resume, "" for a new one.
        tags: tags of a new parent run and its children.
        system_metrics: sample CPU, memory and network use during the runs.
        allow_changes: as for `training.resume`.

    Yields:
        The parent's id, and those of its children.

    Raises:
        CheckpointError: as for `training.resume`.
        TrackingError, FileError: as for `training.train`.
    """
    lock = checkpoint.held(run_id) if run_id else nullcontext()
    with lock:
        if run_id:
            group = _read(run_id)
            _accept_code(run_id, group, allow_changes)
        else:
            group = replace(group, tags=dict(tags or {}))
        with runs.running(
            run_id or None,
            name=None if run_id else name,
            tags=group.tags,
            system_metrics=system_metrics,
        ) as parent:
            if run_id:
                runs.nest_launcher_run(run_id)
            run_id = parent.info.run_id
            try:
                _save(run_id, group)
                if group.changes:
                    with store.refusals(store.START_IT):
                        mlflow.set_tag(CHANGES_TAG, "; ".join(group.changes))
                _train_rest(run_id, group, dataset, system_metrics, allow_changes)
                yield run_id, group.children
            except KeyboardInterrupt:
                resumption.print_advice(group.entry_point, run_id)
                raise


def _accept_code(run_id: str, group: Group, allow_changes: bool) -> None:
    now, after = code(), f"{len(group.children)} runs"
    group.changes += resumption.accepted_changes(run_id, group.code, now, after, allow_changes)
    group.code = now


def _train_rest(
    run_id: str, group: Group, dataset: Dataset, system_metrics: bool, allow_changes: bool
) -> None:
    left = [
        number
        for number in range(len(group.experiments))
        if number >= len(group.children) or not _finished(group.children[number])
    ]
    distributed.share(len(left))
    for number in left:
        experiment = resumption.experiment_of(group.experiments[number])
        if number < len(group.children) and checkpoint.exists(group.children[number]):
            training.resume(
                group.children[number],
                dataset,
                nested=True,
                system_metrics=system_metrics,
                allow_changes=allow_changes,
            )
            continue

        def begun(child: str, number: int = number) -> None:
            group.children[number : number + 1] = [child]
            _save(run_id, group)

        training.train(
            experiment,
            dataset,
            tags=group.tags,
            nested=True,
            system_metrics=system_metrics,
            begun=begun,
        )


def _finished(child: str) -> bool:
    """Return whether a child has finished, and nothing of it is left to do."""
    with store.refusals(store.START_IT):
        run = runs.present(child)
    return run is not None and run.info.status == "FINISHED" and not checkpoint.exists(child)
