"""Classify images: collect samples, predict their classes, and show the predictions."""

import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from fashion import terminal
from fashion.analysis import spreadsheet
from fashion.data.dataset import Subset
from fashion.errors import printable
from fashion.files import replacing
from fashion.inference import photographs
from fashion.settings.task import FASHION_MNIST, Task
from fashion.training import evaluation

# 20 rows of the figure; matplotlib's limit is a height of 65,535 pixels.
MAX_DRAWN = 60
# Characters that a third of the figure's width fits.
CAPTION = 30
# Fonts with Chinese, Japanese and Korean characters, which matplotlib's own lacks: those of Linux,
# macOS and Windows.
CJK_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "IPAexGothic", "WenQuanYi Zen Hei"),
    *("Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
)


class Sample(NamedTuple):
    """One image to classify.

    Attributes:
        name: label of the image in the output.
        image: uint8, shape (channels, height, width).
        true: true class, None if unknown.
        cluttered: whether it was taken on cluttered ground, so that it may show something else;
            None if the model takes pictures with their ground.
    """

    name: str
    image: Tensor
    true: str | None
    cluttered: bool | None = False


class Answer(NamedTuple):
    """A model's prediction for a sample.

    Attributes:
        sample: the classified sample.
        classes: the most probable classes, best first.
        probabilities: their probabilities; of a picture on cluttered ground they mean nothing.
    """

    sample: Sample
    classes: list[str]
    probabilities: list[float]


def from_file(path: Path, invert: str, task: Task = FASHION_MNIST) -> Sample:
    """Read an image file for a model of `task`.

    Raises:
        photographs.ImageError: as for `photographs.read`.
    """
    image, cluttered = photographs.read(path, invert, task)
    return Sample(printable(str(path)), image, None, cluttered if task.extract else None)


def from_subset(subset: Subset, index: int) -> Sample:
    """Return an image of the dataset with its true class."""
    (image,), task = subset.take(torch.tensor([index])), subset.task
    true = task.classes[subset.labels[index]]
    return Sample(f"test image {index}", image, true, False if task.extract else None)


def classify(
    model: nn.Module,
    samples: Sequence[Sample],
    top: int,
    temperature: float = 1.0,
    classes: Sequence[str] = FASHION_MNIST.classes,
) -> list[Answer]:
    """Return the `top` most probable classes of each sample according to `model`.

    Args:
        model: maps images to logits.
        samples: what to classify.
        top: number of classes.
        temperature: what logits are divided by before the softmax.
        classes: names of the logits.
    """
    logits = evaluation.predict(model, torch.stack([sample.image for sample in samples]))
    best = (logits / temperature).softmax(dim=1).topk(top, dim=1)
    return [
        Answer(sample, [classes[index] for index in indices], probabilities)
        for sample, indices, probabilities in zip(
            samples, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def render(answers: Sequence[Answer]) -> str:
    """Return the predictions as text for a terminal of 80 columns."""
    lines = []
    for sample, classes, probabilities in answers:
        title = f"{sample.name} (true class: {sample.true})" if sample.true else sample.name
        lines.append(_shorten(title, terminal.WIDTH))
        if sample.cluttered:
            lines.append(f"{'?':>8}  {' or '.join(classes)}, on cluttered ground")
            continue
        lines += [
            f"{p:8.2%}  {_shorten(name, terminal.WIDTH - 10)}"
            for name, p in zip(classes, probabilities, strict=True)
        ]
    return "".join(f"{line}\n" for line in lines)


def summarise(answers: Sequence[Answer]) -> str:
    """Count the predictions by class, in lines of at most 80 columns."""
    clear = [answer for answer in answers if not answer.sample.cluttered]
    counts = Counter(answer.classes[0] for answer in clear)
    parts = [f"{count:,} {name}" for name, count in counts.most_common()]
    if len(clear) < len(answers):
        parts.append(f"{len(answers) - len(clear):,} on cluttered ground")
    lines = textwrap.wrap(f"{_images(len(answers))}: {', '.join(parts)}", terminal.WIDTH)
    known = [answer for answer in answers if answer.sample.true]
    if known:
        right = sum(answer.classes[0] == answer.sample.true for answer in known)
        lines.append(f"{right:,} of {_images(len(known))} right: {right / len(known):.2%}")
    return "".join(f"{line}\n" for line in lines)


def _images(number: int) -> str:
    return f"{number:,} image{'s' * (number != 1)}"


def write(answers: Sequence[Answer], path: Path) -> None:
    """Write the predictions as CSV, or as a JSON list of objects if `path` ends in .json.

    Each row or object is one class of one image: image (its name), true (its class; empty or null
    if unknown), rank (1 for the most probable), predicted (a class), probability (empty or null on
    cluttered ground), ground (plain or cluttered; left out if the model takes pictures with it).

    Raises:
        files.FileError: the file cannot be written.
    """
    table = pd.DataFrame(
        [
            (
                sample.name,
                sample.true,
                rank,
                name,
                None if sample.cluttered else probability,
                "cluttered" if sample.cluttered else "plain",
            )
            for sample, classes, probabilities in answers
            for rank, (name, probability) in enumerate(zip(classes, probabilities, strict=True), 1)
        ],
        columns=["image", "true", "rank", "predicted", "probability", "ground"],
    )
    if all(answer.sample.cluttered is None for answer in answers):
        table = table.drop(columns="ground")
    with replacing(path) as file:
        if path.suffix.lower() == ".json":
            table.to_json(file, orient="records", indent=2)
        else:
            spreadsheet.harmless(table).to_csv(file, index=False)


def draw(answers: Sequence[Answer], path: Path) -> None:
    """Write a figure of the first `MAX_DRAWN` images with their classes.

    If the true class of every image is known, correct predictions are green and wrong ones red.

    Raises:
        files.FileError: the file cannot be written.
    """
    # Imported here because it imports scikit-learn, which takes a second.
    from matplotlib import font_manager, rc_context

    from fashion.analysis import figures

    installed = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]
    drawn = answers[:MAX_DRAWN]
    true = [answer.sample.true for answer in drawn if answer.sample.true]
    all_known = len(true) == len(drawn)
    with rc_context({"font.family": fonts}), warnings.catch_warnings():
        # Without such a font, a name's characters are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = figures.prediction_grid(
            torch.stack([answer.sample.image for answer in drawn]),
            predicted=[answer.classes[0] if all_known else _caption(answer) for answer in drawn],
            true=true if all_known else None,
            title=f"the first {len(drawn)} of {len(answers):,}"
            if len(drawn) < len(answers)
            else "",
        )
        with replacing(path) as file:
            figure.savefig(file, dpi=100)


def _caption(answer: Answer) -> str:
    from fashion.analysis.style import literal

    name = literal(_shorten(Path(answer.sample.name).name, CAPTION))
    sure = "?" if answer.sample.cluttered else f"{answer.probabilities[0]:.0%}"
    caption = f"{name}\n{literal(answer.classes[0], CAPTION - 5)} {sure}"
    true = answer.sample.true
    return f"{caption}\ntrue: {literal(true, CAPTION - 5)}" if true else caption


def _shorten(text: str, width: int) -> str:
    # The end of a long path is more informative.
    return text if len(text) <= width else f"...{text[3 - width :]}"
