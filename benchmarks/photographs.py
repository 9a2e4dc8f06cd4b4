"""Measure how many photographs are classified rightly, by ground, garment and shadow.

    uv run python -m benchmarks.photographs    # a minute or two

The photographs are made of the dataset's images, so that their classes are known: a light or dark
garment on a ground, with or without a soft shadow, or cut out. Needs a champion in the registry.
"""

import click
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from benchmarks.timing import table
from fashion.data.dataset import Subset
from fashion.data.sources import load_dataset
from fashion.portable import conversion
from fashion.settings.task import CHAMPION_URI
from fashion.tracking import models, store
from fashion.training import evaluation

SIZE, MARGIN = 140, 30
# Luminance, 0 to 255, of the test's grounds, and of others that the method was selected on.
GROUNDS = {"white": 250, "beige": 213, "grey": 140, "wood": 120, "dark": 35}
SELECTION_GROUNDS = {"cream": 236, "taupe": 172, "stone": 105, "plank": 95, "charcoal": 55}
TEXTURED = ("wood", "plank")
CUT_OUT = "none (cut out)"


def scene(image: Tensor, ground: str, light: bool, shadow: bool, seed: int) -> Image.Image:
    """Return a picture of 200 x 200 pixels of the garment.

    Args:
        image: uint8, shape (1, 28, 28), of the dataset.
        ground: a name in `GROUNDS` or `SELECTION_GROUNDS`, or `CUT_OUT`.
        light: whether the garment's luminance is 175 to 255, rather than 10 to 90.
        shadow: whether it casts a soft shadow that takes a quarter of the light.
        seed: of the noise and of the grain of wood.
    """
    pattern = Image.fromarray(image.squeeze(0).numpy())
    canvas = (SIZE + 2 * MARGIN,) * 2
    tone, mask = Image.new("L", canvas), Image.new("L", canvas)
    tone.paste(pattern.resize((SIZE, SIZE), Image.Resampling.BICUBIC), (MARGIN, MARGIN))
    outline = pattern.point([255 * (level > 4) for level in range(256)])
    mask.paste(outline.resize((SIZE, SIZE), Image.Resampling.BICUBIC), (MARGIN, MARGIN))
    mask = mask.filter(ImageFilter.GaussianBlur(2)).point(
        lambda level: max(0, min(255, 4 * level - 384))
    )
    texture = np.asarray(tone, float) / 255
    fabric = 175 + 80 * texture if light else 90 - 80 * texture
    random = np.random.default_rng(seed)
    noise = random.normal(0, 2, canvas)
    if ground == CUT_OUT:
        cut_out = Image.fromarray((fabric + noise).clip(0, 255).astype(np.uint8)).convert("LA")
        cut_out.putalpha(mask)
        return cut_out
    floor = np.full(canvas, float((GROUNDS | SELECTION_GROUNDS)[ground]))
    if ground in TEXTURED:
        grain = random.normal(0, 1, (canvas[0] // 4, 1)).cumsum(axis=0)
        grain = np.sin(3 * np.repeat(grain, 4, axis=0) + np.linspace(0, 2, canvas[1]))
        floor += 12 * grain
    if shadow:
        cast = Image.new("L", canvas)
        cast.paste(mask, (7, 9))
        floor *= 1 - 0.25 * np.asarray(cast.filter(ImageFilter.GaussianBlur(6)), float) / 255
    share = np.asarray(mask, float) / 255
    pixels = (1 - share) * floor + share * fabric + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def conditions(grounds: dict[str, int]) -> list[tuple[str, bool, bool]]:
    """Return ground, whether the garment is light, and whether there is a shadow."""
    shown = [
        (ground, light, shadow)
        for ground in grounds
        for light in (True, False)
        for shadow in (False, True)
    ]
    return [*shown, (CUT_OUT, True, False), (CUT_OUT, False, False)]


def accuracy(
    model: nn.Module, subset: Subset, condition: tuple[str, bool, bool], invert: str
) -> tuple[float, float, float]:
    """Return which shares of the pictures are classified rightly, refused, and called cluttered."""
    taken, labels, cluttered = [], [], 0
    for index, (image, label) in enumerate(zip(subset.images, subset.labels, strict=True)):
        try:
            converted = conversion.convert(scene(image, *condition, seed=index), invert)
        except ValueError:
            continue
        taken.append(converted.image)
        labels.append(int(label))
        cluttered += converted.cluttered
    if not taken:
        return 0.0, 1.0, 0.0
    right = evaluation.predict(model, torch.stack(taken)).argmax(dim=1) == torch.tensor(labels)
    return int(right.sum()) / len(subset), 1 - len(taken) / len(subset), cluttered / len(subset)


@click.command()
@click.option("--images", type=click.IntRange(1, 5000), default=300, show_default=True)
@click.option("--selection", is_flag=True, help="Validation images, on the other grounds.")
@click.option(
    "--invert", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True
)
def main(images: int, selection: bool, invert: str) -> None:
    """Print the accuracy and the share refused for each kind of photograph."""
    store.connect()
    model = models.load(CHAMPION_URI)
    dataset = load_dataset()
    source = dataset.split(5000)[1] if selection else dataset.test
    assert source is not None
    subset = Subset(source.name, source.images[:images], source.labels[:images], source.digest)
    rows = []
    for condition in conditions(SELECTION_GROUNDS if selection else GROUNDS):
        ground, light, shadow = condition
        right, refused, cluttered = accuracy(model, subset, condition, invert)
        garment, cast = "light" if light else "dark", "soft" if shadow else "none"
        rows.append([ground, garment, cast, f"{right:.1%}", f"{refused:.1%}", f"{cluttered:.1%}"])
    click.echo(table(["ground", "garment", "shadow", "right", "refused", "cluttered"], rows))


if __name__ == "__main__":
    main()
