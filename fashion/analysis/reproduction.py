"""Compare a model with the one that its settings gave when they were trained again."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor

from fashion import terminal
from fashion.analysis import markdown
from fashion.errors import printable
from fashion.settings.tags import CODE_TAG

ACCURACIES = {"val_accuracy": "validation", "test_accuracy": "test"}
# Of the weights' digest and of the commit, as shown.
DIGITS = 12


@dataclass(frozen=True)
class Result:
    """What a training gave, and under which conditions.

    Attributes:
        weights: the model's parameters and buffers by name.
        metrics: the run's last metrics by name.
        conditions: facts about the machine, the software and the data by name, as they were logged;
            those that were not are missing.
    """

    weights: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    conditions: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the weights, their names, types and shapes."""
        whole = hashlib.sha256()
        for name, tensor in sorted(self.weights.items()):
            whole.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            whole.update(_bytes(tensor).numpy().tobytes())
        return whole.hexdigest()


@dataclass(frozen=True)
class Change:
    """A tensor whose bits differ.

    Attributes:
        name: its name.
        values: how many values it has.
        differing: how many of them differ in any bit.
        largest: largest absolute difference of two values; infinite if one of them is not finite,
            or if the tensor has another shape or type, or only one of the models has it.
    """

    name: str
    values: int
    differing: int
    largest: float


@dataclass(frozen=True)
class Reproduction:
    """Two trainings with the same settings.

    Attributes:
        name: what to call the model.
        commit: the commit of which the code was used.
        then, now: the result of the model's run, and of training it again.
    """

    name: str
    commit: str
    then: Result
    now: Result

    @cached_property
    def changes(self) -> list[Change]:
        """The tensors that differ, in the order of the model."""
        names = dict.fromkeys([*self.then.weights, *self.now.weights])
        compared = [
            _compare(name, self.then.weights.get(name), self.now.weights.get(name))
            for name in names
        ]
        return [change for change in compared if change.differing]

    @property
    def is_reproduced(self) -> bool:
        """Whether all weights are equal bit for bit."""
        return not self.changes

    @property
    def verdict(self) -> str:
        """The outcome in one line."""
        tensors = len(self.then.weights)
        if self.is_reproduced:
            return f"reproduced bit for bit: {tensors} tensors, SHA-256 {self.then.digest[:DIGITS]}"
        return (
            f"not reproduced: {len(self.changes)} of {tensors} tensors differ, by up to"
            f" {self.metrics['max_weight_difference']:.2g}"
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The outcome in numbers, by name."""
        return {
            "tensors": len(self.then.weights),
            "differing_tensors": len(self.changes),
            "max_weight_difference": max((each.largest for each in self.changes), default=0.0),
        }

    @property
    def conditions(self) -> list[tuple[str, str, str]]:
        """Name, old and new value of each condition that is known to differ."""
        then, now = self.then.conditions, self.now.conditions
        return [
            (name, then[name], now[name])
            for name in then
            if name in now and then[name] != now[name]
        ]

    @property
    def explanation(self) -> str:
        """What the conditions say about weights that differ."""
        then, now = self.then.conditions, self.now.conditions
        known = [name for name in then if name in now]
        unknown = [name for name in {**now, **then} if name not in known]
        said = [] if self.conditions else [f"Nothing recorded differs: {', '.join(known)}."]
        if any(name == CODE_TAG for name, _, _ in self.conditions):
            said.append("The run was not of this commit alone: files had been changed.")
        if unknown:
            said.append(f"Not recorded with one of them: {', '.join(unknown)}.")
        said.append("Never recorded: the processor's model and the operating system.")
        return " ".join(said)

    @property
    def _accuracies(self) -> list[tuple[str, str, str]]:
        then, now = self.then.metrics, self.now.metrics
        return [
            (f"{title} accuracy", f"{then[name]:.2%}", f"{now[name]:.2%}")
            for name, title in ACCURACIES.items()
            if name in then and name in now
        ]

    @property
    def _tensors(self) -> list[tuple[str, str, str, str]]:
        return [
            (each.name, f"{each.values:,}", f"{each.differing:,}", f"{each.largest:.2g}")
            for each in self.changes
        ]


SIDES = ["", "then", "now"]
TENSORS = ["tensor", "values", "differing", "largest difference"]


def render(found: Reproduction) -> str:
    """Return the comparison as text for a terminal of 80 columns."""
    title = f"{printable(found.name)}, trained again at commit {found.commit[:DIGITS]}"
    blocks: list[RenderableType] = [title, found.verdict, "", _table(SIDES, found._accuracies)]
    if not found.is_reproduced:
        blocks += ["", _table(TENSORS, found._tensors)]
    if found.conditions:
        blocks += ["", _table(["what differs", *SIDES[1:]], found.conditions)]
    if not found.is_reproduced:
        blocks += ["", found.explanation]
    return terminal.render(*blocks)


def note(found: Reproduction) -> str:
    """Return the comparison in Markdown, for the run that it is logged to."""
    paragraphs = [
        f"### {printable(found.name)}",
        f"Trained again at commit `{found.commit}`: {found.verdict}.",
        markdown.table(SIDES, found._accuracies),
    ]
    if not found.is_reproduced:
        paragraphs.append(markdown.table(TENSORS, found._tensors))
    if found.conditions:
        paragraphs.append(markdown.table(["what differs", *SIDES[1:]], found.conditions))
    if not found.is_reproduced:
        paragraphs.append(found.explanation)
    return markdown.text(paragraphs)


def _table(header: list[str], rows: list) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(header[0])
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(printable, row))
    return table


def _compare(name: str, then: Tensor | None, now: Tensor | None) -> Change:
    if then is None or now is None or then.shape != now.shape or then.dtype != now.dtype:
        values = max(each.numel() for each in (then, now) if each is not None)
        return Change(name, values, values, math.inf)
    differs = (_bytes(then) != _bytes(now)).any(dim=1)
    distances = (then.flatten()[differs].double() - now.flatten()[differs].double()).abs()
    largest = distances.nan_to_num(nan=math.inf).max().item() if len(distances) else 0.0
    return Change(name, then.numel(), int(differs.sum()), largest)


def _bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of each value: uint8, shape (number of values, bytes per value)."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).reshape(tensor.numel(), tensor.element_size())
