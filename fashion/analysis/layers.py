"""Explore a model: shapes of its layers, feature maps of one image, and filters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torchinfo import summary
from torchvision.utils import make_grid

from fashion import terminal
from fashion.analysis.style import literal
from fashion.errors import FashionError
from fashion.files import replacing
from fashion.models.catalogue import count_parameters
from fashion.settings.task import FASHION_MNIST, Task

# Layers with a sliding window.
WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
# Blue is negative, red positive, white zero; the grid between tiles is grey.
SIGNED = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.6")

DPI = 120
# The channels of an image in colour.
COLOURS = ("red", "green", "blue")
# More filters, or channels of a filter, would be too small to see.
MOST_FILTERS = 32
# Logits; more bars would have no room for their names.
MOST_CLASSES = 20
# Width of a tile in the mosaic's pixels: of a narrower one the grid would be too thick.
TILE = 28
LEGEND = """
Shapes are for one image, channels first.
sees: receptive field, the pixels that one output value depends on."""


class ExploreError(FashionError):
    """The model has no filters to show."""


@dataclass(frozen=True)
class Layer:
    """A layer of a model.

    Attributes:
        name: path of the module in the model, for example block_1.0.
        kind: class of the module, for example Conv2d.
        input_shape, output_shape: shapes for one image, without the batch dimension.
        parameters: number of weights and biases.
        receptive_field: height and width, in pixels, of the part of the image that one output
            value depends on.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    receptive_field: tuple[int, int]


@dataclass(frozen=True)
class Exploration:
    """Result of exploring a model.

    Attributes:
        table: table of the layers, for a terminal of 80 columns.
        figures: figures by file name.
    """

    table: str
    figures: Mapping[str, Figure]


def explore(
    model: nn.Module, image: Tensor, name: str, caption: str, task: Task = FASHION_MNIST
) -> Exploration:
    """Return a model's layers, filters, and feature maps for one image.

    Args:
        model: maps float32 images (N, channels, height, width) to logits (N, classes); in
            evaluation mode, on the CPU.
        image: float32, shape (channels, height, width), in [0, 1].
        name: name of the model, for titles.
        caption: description of the image, for titles.
        task: what the model classifies.

    Raises:
        ExploreError: no layer of the model has filters.
    """
    return Exploration(
        table=render(layers(model, task), f"{name}: {count_parameters(model):,} parameters\n"),
        figures={
            "feature_maps.png": draw_feature_maps(model, image, name, caption, task),
            "filters.png": draw_filters(model, name, task),
        },
    )


def write(exploration: Exploration, directory: Path) -> None:
    """Write layers.txt and the figures to `directory`, each atomically.

    Raises:
        files.FileError: the directory cannot be created or written.
    """
    with replacing(directory / "layers.txt") as file:
        file.write_text(exploration.table, encoding="utf-8")
    for name, figure in exploration.figures.items():
        with replacing(directory / name) as file:
            figure.savefig(file)


def layers(model: nn.Module, task: Task = FASHION_MNIST) -> list[Layer]:
    """Return the layers of `model` in order of execution, without containers."""
    names = {module: name for name, module in model.named_modules()}
    passed = [
        info
        for info in summary(model, input_data=torch.zeros(1, *task.shape), verbose=0).summary_list
        if info.is_leaf_layer
    ]
    fields = receptive_fields((info.module for info in passed), task)
    return [
        Layer(
            names[info.module],
            info.class_name,
            tuple(info.input_size[1:]),
            tuple(info.output_size[1:]),
            info.num_params,
            field,
        )
        for info, field in zip(passed, fields, strict=True)
    ]


def receptive_fields(
    chain: Iterable[nn.Module], task: Task = FASHION_MNIST
) -> list[tuple[int, int]]:
    """Return the receptive field after each layer of a chain: height and width in pixels.

    A window of k values with dilation d adds d (k - 1) steps to the field; a step is the product of
    all earlier strides, in pixels. Padding does not change the size; the field is clipped to the
    image. A linear layer sees the whole image; all other layers are treated as elementwise.

    Source: Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks"
    (Distill 2019, doi:10.23915/distill.00021), equation 2 for networks with a single path.
    """
    size = task.shape[1:]
    field, step = np.ones(2, int), np.ones(2, int)
    fields = []
    for layer in chain:
        if isinstance(layer, WINDOWED):
            field = field + np.multiply(getattr(layer, "dilation", 1), step) * (
                np.array(layer.kernel_size) - 1
            )
            step = step * layer.stride
        elif isinstance(layer, nn.Linear):
            field = np.array(size)
        height, width = np.minimum(field, size).tolist()
        fields.append((height, width))
    return fields


def render(table: Iterable[Layer], title: str) -> str:
    """Return a table of layers as text for a terminal of 80 columns."""
    rich_table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("layer", "kind"):
        rich_table.add_column(heading)
    for heading in ("input", "output", "parameters", "sees"):
        rich_table.add_column(heading, justify="right")
    for layer in table:
        rich_table.add_row(
            layer.name,
            layer.kind,
            _times(layer.input_shape),
            _times(layer.output_shape),
            f"{layer.parameters:,}" if layer.parameters else "-",
            _times(layer.receptive_field),
        )
    return terminal.render(title, rich_table, LEGEND)


def feature_maps(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return the outputs of all convolution and pooling layers of `model` for one image.

    Args:
        model: in evaluation mode.
        image: float32, shape (channels, height, width), in [0, 1].

    Returns:
        By layer name, in order of execution: float32, shape (channels, height, width).
    """
    maps = {}

    def record(name: str, _layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
        # A copy, because an in-place ReLU would overwrite the convolution's output.
        maps[name] = output[0].clone()

    hooks = [
        module.register_forward_hook(partial(record, name))
        for name, module in model.named_modules()
        if isinstance(module, WINDOWED)
    ]
    try:
        with torch.inference_mode():
            model(image[None])
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def filters(model: nn.Module, task: Task = FASHION_MNIST) -> dict[str, Tensor]:
    """Return the weights of all convolutions, else of the first linear layer, by layer name.

    The first linear layer's input is the image, so its weights are filters of the image's size.

    Returns:
        float32, shape (output channels, input channels, height, width).

    Raises:
        ExploreError: no layer of the model has filters.
    """
    convolutions = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    if convolutions:
        return convolutions
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.in_features == task.pixels:
            return {name: module.weight.detach().unflatten(1, task.shape)}
    raise ExploreError("the model has neither a convolution nor a linear layer on the pixels")


def draw_feature_maps(
    model: nn.Module, image: Tensor, name: str, caption: str, task: Task = FASHION_MNIST
) -> Figure:
    """Draw the image, the logits, and all channels after each convolution and pooling layer.

    The channels of one layer share one colour scale.

    For the arguments see `explore`.
    """
    maps = feature_maps(model, image)
    with torch.inference_mode():
        logits = model(image[None])[0]
    figure = Figure(figsize=(10, 2.6 + 1.35 * len(maps)), dpi=DPI, layout="constrained")
    figure.suptitle(name)
    grid = figure.add_gridspec(
        1 + len(maps), 2, width_ratios=[1, 2.5], height_ratios=[2, *[1.2] * len(maps)]
    )
    original = figure.add_subplot(grid[0, 0])
    original.imshow(image.movedim(0, -1).numpy(), cmap="gray", vmin=0, vmax=1)
    original.set_title(f"{literal(caption)}\n{_times(image.shape)}", fontsize=10)
    original.axis("off")
    _draw_logits(figure.add_subplot(grid[0, 1]), logits, task.classes)

    seen = {layer.name: layer for layer in layers(model, task)}
    for row, (layer_name, channels) in enumerate(maps.items(), start=1):
        layer = seen[layer_name]
        axes = figure.add_subplot(grid[row, :])
        _draw_tiles(axes, channels, _columns(len(channels), aspect=10))
        axes.set_title(
            f"layer {layer_name}, {layer.kind}: {_times(layer.output_shape)},"
            f" one value sees {_times(layer.receptive_field)} pixels",
            loc="left",
            fontsize=10,
        )
    return figure


def draw_filters(model: nn.Module, name: str, task: Task = FASHION_MNIST) -> Figure:
    """Draw the weights that `filters` returns, each layer on a colour scale centred on zero.

    Raises:
        ExploreError: no layer of the model has filters.
    """
    weights = filters(model, task)
    columns = min(2, len(weights))
    rows = -(-len(weights) // columns)
    figure = Figure(
        figsize=(10, (5 if columns == 2 else 4.4) * rows), dpi=DPI, layout="constrained"
    )
    figure.suptitle(f"{name}: filters")
    first = next(iter(weights))
    for place, (layer_name, weight) in enumerate(weights.items(), start=1):
        count, channels, *_ = weight.shape
        title = f"layer {layer_name}: filters {_times(weight.shape)}"
        if channels > 1:
            of_image = layer_name == first and channels == task.channels == len(COLOURS)
            rows_show = f"rows: {', '.join(COLOURS)}" if of_image else "row: input channel"
            title += f"\ncolumn: output channel, {rows_show}"
        if max(count, channels) > MOST_FILTERS:
            title += f"\nthe first {MOST_FILTERS} of each"
        drawn = weight[:MOST_FILTERS, :MOST_FILTERS]
        across = len(drawn) if channels > 1 else _columns(len(drawn), aspect=2.5)
        axes = figure.add_subplot(rows, columns, place)
        _draw_tiles(axes, drawn.transpose(0, 1).flatten(0, 1), across)
        axes.set_title(title, loc="left", fontsize=10)
    return figure


def _draw_logits(axes: Axes, logits: Tensor, classes: Sequence[str]) -> None:
    """Draw the logits of all classes or, of more than `MOST_CLASSES`, the largest."""
    answer = int(logits.argmax())
    shown = list(range(len(classes)))
    if len(classes) > MOST_CLASSES:
        shown = logits.argsort(descending=True, stable=True)[:MOST_CLASSES].tolist()
    places = range(len(shown))
    bars = axes.barh(places, logits[shown].numpy(), color="0.7")
    axes.set_yticks(places, [literal(classes[label]) for label in shown])
    bars[shown.index(answer)].set_color("tab:orange")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8 if len(shown) <= 10 else 5)
    which = f"the {len(shown)} largest of {len(classes)} " if len(shown) < len(classes) else ""
    axes.set_title(f"{which}logits: predicts {literal(classes[answer])}", fontsize=10)


def _draw_tiles(axes: Axes, tiles: Tensor, columns: int) -> None:
    """Draw images (N, height, width) as one mosaic with `columns` per row, and a colour bar."""
    limit = float(tiles.abs().max())
    # Enlarge small tiles, so that the grid is thin relative to any tile.
    enlarged = F.interpolate(tiles[:, None], scale_factor=max(1, TILE // tiles.shape[-1]))
    mosaic = make_grid(enlarged, nrow=columns, padding=1, pad_value=math.nan)[0]
    drawn = axes.imshow(
        mosaic.numpy(), cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axes.set_anchor("NW")
    axes.axis("off")
    # Not colorbar(ax=axes), whose height would be that of the axes, not of the tiles.
    height, width = mosaic.shape
    thickness = 0.035 * math.sqrt(height / width)
    bar = axes.inset_axes((1 + thickness / 2, 0, thickness, 1))
    bar.figure.colorbar(drawn, cax=bar)


def _columns(tiles: int, aspect: float) -> int:
    """Return the number of tiles per row for a mosaic about `aspect` times as wide as high."""
    return min(tiles, math.ceil(math.sqrt(aspect * tiles)))


def _times(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))  # noqa: RUF001
