"""Look inside a model: the shape of every layer, what one image becomes, what the filters are."""

import math
from collections.abc import Iterable, Mapping
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
from fashion.errors import FashionError
from fashion.files import replacing
from fashion.models.catalogue import count_parameters
from fashion.settings.task import CLASSES, IMAGE_SHAPE

IMAGE_SIZE = IMAGE_SHAPE[1:]
# Layers that slide a window over the image.
WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
# Blue is negative, red positive, white zero; grey, which is neither, divides the tiles.
SIGNED = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.6")

DPI = 120
# Of more filters, or channels of a filter, each would be too small to see.
MOST_FILTERS = 32
LEGEND = """
Shapes are those of one image, channels first.
sees: the receptive field, the pixels that one output value depends on."""


class ExploreError(FashionError):
    """The model has nothing to show."""


@dataclass(frozen=True)
class Layer:
    """One layer, as one image passes through it.

    Attributes:
        name: where the module is in its model, for example block_1.0.
        kind: its class, for example Conv2d.
        input_shape, output_shape: of one image, without the batch dimension.
        parameters: number of weights and biases.
        receptive_field: height and width, in pixels, of the part of the image that one value of
            the output depends on.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    receptive_field: tuple[int, int]


@dataclass(frozen=True)
class Exploration:
    """What there is to see in a model.

    Attributes:
        table: of the layers, for a terminal of 80 columns.
        figures: by file name.
    """

    table: str
    figures: Mapping[str, Figure]


def explore(model: nn.Module, image: Tensor, name: str, caption: str) -> Exploration:
    """Show how `model` sees `image`.

    Args:
        model: maps float32 images (N, 1, 28, 28) on the CPU to logits (N, 10); evaluation mode.
        image: float32, shape (1, 28, 28), in [0, 1].
        name: what to call the model.
        caption: what to call the image.

    Raises:
        ExploreError: no layer of the model has filters.
    """
    return Exploration(
        table=render(layers(model), f"{name}: {count_parameters(model):,} parameters\n"),
        figures={
            "feature_maps.png": draw_feature_maps(model, image, name, caption),
            "filters.png": draw_filters(model, name),
        },
    )


def write(exploration: Exploration, directory: Path) -> None:
    """Write layers.txt and the figures into `directory`, each whole or not at all.

    Raises:
        files.FileError: the directory cannot be made or written.
    """
    with replacing(directory / "layers.txt") as file:
        file.write_text(exploration.table, encoding="utf-8")
    for name, figure in exploration.figures.items():
        with replacing(directory / name) as file:
            figure.savefig(file)


def layers(model: nn.Module) -> list[Layer]:
    """Return the layers of `model`, without the containers around them, in the order they run."""
    names = {module: name for name, module in model.named_modules()}
    passed = [
        info
        for info in summary(model, input_data=torch.zeros(1, *IMAGE_SHAPE), verbose=0).summary_list
        if info.is_leaf_layer
    ]
    fields = receptive_fields(info.module for info in passed)
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


def receptive_fields(chain: Iterable[nn.Module]) -> list[tuple[int, int]]:
    """Return the receptive field after each layer of a chain: height and width in pixels.

    A window of k values that lie d apart adds d (k - 1) steps to the field, and a step is as many
    pixels as the strides before it multiply to. Padding moves the field and leaves its size; what
    reaches beyond the image is not counted. A linear layer sees all of the image, and any other
    layer is taken to look at each value by itself.

    Source: Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks"
    (Distill 2019, doi:10.23915/distill.00021), equation 2 for networks with a single path.
    """
    field, step = np.ones(2, int), np.ones(2, int)
    fields = []
    for layer in chain:
        if isinstance(layer, WINDOWED):
            field = field + np.multiply(getattr(layer, "dilation", 1), step) * (
                np.array(layer.kernel_size) - 1
            )
            step = step * layer.stride
        elif isinstance(layer, nn.Linear):
            field = np.array(IMAGE_SIZE)
        height, width = np.minimum(field, IMAGE_SIZE).tolist()
        fields.append((height, width))
    return fields


def render(table: Iterable[Layer], title: str) -> str:
    """Return `layers` as text for a terminal of 80 columns."""
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
    """Return what each convolution and each pooling layer of `model` makes of one image.

    Args:
        model: in evaluation mode.
        image: float32, shape (1, 28, 28), in [0, 1].

    Returns:
        By the layer's name, in the order they run: float32, shape (channels, height, width).
    """
    maps = {}

    def keep(name: str, _layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
        # A copy: a ReLU that works in place would overwrite the convolution's output.
        maps[name] = output[0].clone()

    hooks = [
        module.register_forward_hook(partial(keep, name))
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


def filters(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of each convolution, or else of the first linear layer, by its name.

    The first linear layer sees the pixels, so its weights are a filter as large as the image.

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
        if isinstance(module, nn.Linear) and module.in_features == math.prod(IMAGE_SHAPE):
            return {name: module.weight.detach().unflatten(1, IMAGE_SHAPE)}
    raise ExploreError("the model has no convolution and no linear layer on the pixels to look at")


def draw_feature_maps(model: nn.Module, image: Tensor, name: str, caption: str) -> Figure:
    """Draw the image, the logits, and all channels after each convolution and pooling layer.

    The channels of one layer share one colour scale.

    Args: as for `explore`.
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
    original.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
    original.set_title(f"{caption}\n{_times(image.shape)}", fontsize=10)
    original.axis("off")
    _draw_logits(figure.add_subplot(grid[0, 1]), logits)

    seen = {layer.name: layer for layer in layers(model)}
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


def draw_filters(model: nn.Module, name: str) -> Figure:
    """Draw the weights that `filters` returns, each layer on a colour scale centred on zero.

    Raises:
        ExploreError: no layer of the model has filters.
    """
    weights = filters(model)
    columns = min(2, len(weights))
    rows = -(-len(weights) // columns)
    figure = Figure(
        figsize=(10, (5 if columns == 2 else 4.4) * rows), dpi=DPI, layout="constrained"
    )
    figure.suptitle(f"{name}: filters")
    for place, (layer_name, weight) in enumerate(weights.items(), start=1):
        count, channels, *_ = weight.shape
        title = f"layer {layer_name}: filters {_times(weight.shape)}"
        if channels > 1:
            title += "\ncolumn: output channel, row: input channel"
        if max(count, channels) > MOST_FILTERS:
            title += f"\nthe first {MOST_FILTERS} of each"
        drawn = weight[:MOST_FILTERS, :MOST_FILTERS]
        across = len(drawn) if channels > 1 else _columns(len(drawn), aspect=2.5)
        axes = figure.add_subplot(rows, columns, place)
        _draw_tiles(axes, drawn.transpose(0, 1).flatten(0, 1), across)
        axes.set_title(title, loc="left", fontsize=10)
    return figure


def _draw_logits(axes: Axes, logits: Tensor) -> None:
    answer = int(logits.argmax())
    bars = axes.barh(CLASSES, logits.numpy(), color="0.7")
    bars[answer].set_color("tab:orange")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_title(f"logits: answers {CLASSES[answer]}", fontsize=10)


def _draw_tiles(axes: Axes, tiles: Tensor, columns: int) -> None:
    """Draw images of shape (N, height, width) as one, in rows of `columns`, with a colour bar."""
    limit = float(tiles.abs().max())
    # Small tiles are enlarged, so that the lines between them are thin beside any tile.
    enlarged = F.interpolate(tiles[:, None], scale_factor=max(1, IMAGE_SIZE[1] // tiles.shape[-1]))
    mosaic = make_grid(enlarged, nrow=columns, padding=1, pad_value=math.nan)[0]
    drawn = axes.imshow(
        mosaic.numpy(), cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axes.set_anchor("NW")
    axes.axis("off")
    # Not colorbar(ax=axes): that bar is as high as the room for the tiles, not as the tiles.
    height, width = mosaic.shape
    thickness = 0.035 * math.sqrt(height / width)
    bar = axes.inset_axes((1 + thickness / 2, 0, thickness, 1))
    bar.figure.colorbar(drawn, cax=bar)


def _columns(tiles: int, aspect: float) -> int:
    """Return how many tiles to put side by side for about `aspect` times as wide as high."""
    return min(tiles, math.ceil(math.sqrt(aspect * tiles)))


def _times(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))  # noqa: RUF001
