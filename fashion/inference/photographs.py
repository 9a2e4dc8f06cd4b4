"""Turn image files into images like Fashion-MNIST's: 28x28 pixels, a light garment on black.

The dataset's authors made theirs from catalogue pictures on a near-white ground: they trimmed the
edges that are within 5 % of the corners' colour, resized the longest edge to 28 by subsampling,
sharpened, centred on a 28x28 canvas, negated, and converted to 8-bit grayscale (Xiao et al. 2017,
arXiv:1708.07747, section 2). `convert` follows them, and says where it does not.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError
from torch import Tensor

from fashion.errors import FashionError, printable
from fashion.settings.task import IMAGE_SHAPE

FORMATS = ("PNG", "JPEG")
SUFFIXES = (".png", ".jpg", ".jpeg")
# A decoded pixel takes up to 4 bytes, and a turned copy as much again: half a gigabyte at most.
MAX_PIXELS = 50_000_000
SIZE = IMAGE_SHAPE[1:]
# The garment is looked for at eight times the final resolution: shrinking evens noise out.
WORKING_SIZE = (8 * SIZE[0], 8 * SIZE[1])
# 5 % of 255, the authors' closeness to the background.
TOLERANCE = 13


class ImageError(FashionError):
    """A file cannot be read as an image, or nothing can be seen on it."""


def find(path: Path) -> list[Path]:
    """Return the files in a folder that are named like images, sorted by name.

    Folders within the folder are not looked into. What is no folder, or holds no such file, is
    returned itself: `read` says what is wrong with it.
    """
    listable = os.access(path, os.R_OK) and path.is_dir()
    entries = sorted(path.iterdir()) if listable else []
    files = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file()]
    return files or [path]


def read(path: Path, invert: str = "auto") -> Tensor:
    """Read a PNG or JPEG file and `convert` it. Of an animated PNG the first frame counts.

    Args:
        path: the file; its content tells the format, not its name.
        invert: as for `convert`.

    Returns:
        uint8, shape (1, 28, 28).

    Raises:
        ImageError: the file is missing, no PNG or JPEG, damaged, of more than `MAX_PIXELS` pixels,
            or shows nothing.
    """
    try:
        if path.is_dir():
            raise ValueError(f"a folder without readable {', '.join(SUFFIXES)} files")
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        # Pillow warns of oddities that either do no harm or end in an error below.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}"
                )
            return convert(image, invert)
    except Exception as error:  # Pillow raises whatever a damaged file leads its decoders into.
        raise ImageError(f"cannot read {printable(str(path))}: {_reason(error)}") from error


def convert(image: Image.Image, invert: str = "auto") -> Tensor:
    """Convert a picture of any size and mode.

    1. It is turned as its EXIF orientation says.
    2. What is transparent becomes white, like the catalogue's ground; with "never", black.
    3. It becomes 8-bit grayscale; of 16 bits the upper 8 are kept.
    4. It is inverted: if `invert` is "always", or "auto" and the median of its four corner pixels
       is above 127. The corners, because a wide garment covers most of the border.

    An image of 28x28 pixels is finished here, so a saved image of the dataset comes back as it was
    (of the dataset's 70,000, none has corners that "auto" would invert). Any other goes on:

    5. It is shrunk to at most `WORKING_SIZE`.
    6. The level of its background, again the corners', is subtracted. The authors had no need to:
       their ground was all but white. Photographs have grey ones, which must become black too.
    7. It is trimmed to the pixels that differ from the background by more than `TOLERANCE`. Specks
       that a median filter of 3x3 pixels removes do not count.
    8. Its longest edge is resized to 28 by a Lanczos filter, where the authors subsampled and
       sharpened, which would amplify a photograph's noise, and it is centred on black.

    Args:
        image: may be modified.
        invert: "auto", "always" or "never".

    Returns:
        uint8, shape (1, 28, 28).

    Raises:
        ValueError: nothing stands out from the background.
    """
    ImageOps.exif_transpose(image, in_place=True)
    gray = _grayscale(image, ground=0 if invert == "never" else 255)
    gray.thumbnail(WORKING_SIZE)
    if invert == "always" or (invert == "auto" and _background(gray) > 127):
        gray = ImageOps.invert(gray)
    if gray.size != SIZE:
        gray = ImageOps.pad(_garment(gray), SIZE, method=Image.Resampling.LANCZOS, color=0)
        if not np.any(np.asarray(gray) > TOLERANCE):
            raise ValueError("nothing stands out from the background")
    return torch.from_numpy(np.array(gray)).unsqueeze(0)


def _grayscale(image: Image.Image, ground: int) -> Image.Image:
    if image.mode == "I;16":
        # Pillow's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("L")
    rgba = image.convert("RGBA")
    canvas = Image.new("L", image.size, ground)
    canvas.paste(rgba.convert("L"), mask=rgba.getchannel("A"))
    return canvas


def _background(gray: Image.Image) -> int:
    corners = np.asarray(gray)[[0, 0, -1, -1], [0, -1, 0, -1]]
    return int(np.median(corners))


def _garment(gray: Image.Image) -> Image.Image:
    """Trim to the garment, if one is found, and make the background black."""
    smooth = gray.filter(ImageFilter.MedianFilter(3))
    ground = Image.new("L", gray.size, _background(smooth))
    distance = ImageChops.difference(smooth, ground)
    box = distance.point([255 * (level > TOLERANCE) for level in range(256)]).getbbox()
    return ImageChops.subtract(gray, ground).crop(box)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not a {' or '.join(FORMATS)} image"
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return next(iter(text.splitlines()), type(error).__name__)
