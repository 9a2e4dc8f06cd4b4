"""Convert pictures to images like Fashion-MNIST's: 28x28 pixels, a light garment on black.

The dataset's authors used catalogue pictures on a near-white background: they trimmed the edges
within 5 % of the corners' colour, resized the longest edge to 28 by subsampling, sharpened, centred
on a 28x28 canvas, inverted, and converted to 8-bit grayscale (Xiao et al. 2017, arXiv:1708.07747,
section 2). `convert` follows them except where its docstring says so.

This file is stored with each logged model (see `fashion.tracking.faces`), so it imports nothing of
this project.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import (
    Image,
    ImageChops,
    ImageFilter,
    ImageOps,
    ImageStat,
    UnidentifiedImageError,
    features,
)
from torch import Tensor

# Raster formats that cameras, telephones and shops write. Pillow reads more, some by running other
# programs (EPS) or with decoders that few people use.
IMAGE_FORMATS = (
    *("PNG", "JPEG", "GIF", "TIFF", "BMP"),
    *(name for name in ("WEBP", "AVIF") if features.check(name.lower())),
)
# A decoded pixel takes up to 4 bytes, and a rotated copy the same; decoders of some formats hold up
# to 16 bytes a pixel: half a gigabyte at most.
MAX_PIXELS = 32_500_000
# Telephones take 50 and 64 million pixels. They write JPEG, which is decoded at an eighth of the
# size, unless it is progressive: then the decoder first collects the whole picture.
MAX_PIXELS_JPEG = 2 * MAX_PIXELS
# A server has several threads: pictures above this size are decoded one at a time.
LARGE = 4_000_000
SIZE = (28, 28)
# The garment is located at eight times the final resolution; downscaling averages noise out.
WORKING_SIZE = (8 * SIZE[0], 8 * SIZE[1])
# 5 % of 255, the authors' threshold for the background.
BACKGROUND_TOLERANCE = 13
# Of plain ground: the share of the picture's edge that differs from its level by more than the
# tolerance, and the median difference from the blurred edge in levels. Noise of a camera makes 2.
MAX_UNEVEN = 0.35
MAX_TEXTURE = 2.5
# Marks the pixels that are mostly opaque.
OPAQUE = [255 * (level > 127) for level in range(256)]

_large: AbstractContextManager = threading.Lock()
_Result = TypeVar("_Result")


def share_turns(lock: AbstractContextManager) -> None:
    """Let several processes take turns at large pictures, by a lock or semaphore that they share.

    Without, the threads of each process take turns.
    """
    global _large
    _large = lock


class Converted(NamedTuple):
    """A picture as an image like the dataset's.

    Attributes:
        image: uint8, shape (1, 28, 28), light on black.
        cluttered: whether the garment may not have been found, because it does not lie on plain
            ground.
    """

    image: Tensor
    cluttered: bool


def read(source: Path | bytes, invert: str = "auto") -> Converted:
    """Read a picture and `convert` it; of several frames or pages only the first.

    Args:
        source: a file, or what is in one; the format is detected from the content.
        invert: as for `convert`.

    Raises:
        ValueError: it is missing, of none of `IMAGE_FORMATS`, damaged, has too many pixels, or
            shows nothing. The message is one line, and names no file.
    """
    return _decode(source, WORKING_SIZE, lambda image: convert(image, invert))


def fit(source: Path | bytes, shape: tuple[int, int, int]) -> Tensor:
    """Read a picture as `read` does, and resize the whole of it to `shape`.

    It is rotated according to its EXIF orientation, a transparent one is put on black or white, and
    16 and 32 bits become 8, as in `convert`; then it is resized by Pillow's bilinear filter, which
    averages when it downscales. Width and height are scaled each on its own: nothing is cut off and
    no bars are added. Keras' folders and the processors of Hugging Face's ViT and of SigLIP do the
    same. A network trained on such pictures gets used to the change of proportions, and pretrained
    ones have seen it: their random crops have proportions of 3:4 to 4:3.

    A picture of this size and of 8 bits is returned unchanged.

    Args:
        source: as for `read`.
        shape: channels (1 for grey, 3 for red, green and blue), height and width.

    Returns:
        uint8, of `shape`.

    Raises:
        ValueError: it is missing, of none of `IMAGE_FORMATS`, damaged, or has too many pixels. The
            message is one line, and names no file.
    """
    channels, height, width = shape

    def work(image: Image.Image) -> Tensor:
        _load(image)
        if image.mode in ("I", "F"):  # before the levels are scaled: it may take 8 bytes a pixel
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        flat = _grayscale(image) if channels == 1 else _rgb(image)
        resized = flat.resize((width, height), Image.Resampling.BILINEAR)
        levels = np.array(resized).reshape(height, width, channels)
        return torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1)))

    # JPEG is decoded at twice the size at least, as by Pillow's thumbnail: all of it is averaged.
    return _decode(source, (2 * width, 2 * height), work)


class Description(NamedTuple):
    """What the header of a picture says: width and height in pixels, and whether it is grey."""

    width: int
    height: int
    grey: bool


def describe(source: Path | bytes) -> Description:
    """Read the header of a picture.

    Raises:
        ValueError: as for `fit`, except that damage of the pixels is not noticed.
    """
    with _opened(source) as image:
        return Description(image.width, image.height, Image.getmodebase(image.mode) == "L")


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Yield a picture of a permitted size, not decoded yet; any error becomes a ValueError."""
    try:
        if isinstance(source, Path):
            if source.is_dir():
                next(source.iterdir(), None)  # raises if listing is denied
                raise ValueError("a folder without images")
            if source.exists() and not source.is_file():
                raise ValueError("not a regular file")
        # Pillow's warnings are either harmless or followed by an error.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(
                BytesIO(source) if isinstance(source, bytes) else source, formats=IMAGE_FORMATS
            ) as image,
        ):
            limit = MAX_PIXELS_JPEG if _is_sequential(image) else MAX_PIXELS
            if image.width * image.height > limit:
                raise ValueError(
                    f"{image.width}x{image.height} pixels exceed the limit of {limit:,}"
                )
            yield image
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(_reason(error)) from error


def _is_sequential(image: Image.Image) -> bool:
    """Tell whether it is a JPEG that can be decoded at a part of its size with little memory."""
    return image.format == "JPEG" and "progressive" not in image.info


def _decode(
    source: Path | bytes, size: tuple[int, int], work: Callable[[Image.Image], _Result]
) -> _Result:
    """Return the result of `work` on a picture; a JPEG is then decoded at `size` or above."""
    with _opened(source) as image:
        pixels = image.width * image.height
        image.draft(None, size)  # JPEG only
        if _is_sequential(image):
            pixels = image.width * image.height
        if pixels <= LARGE:
            return work(image)
        # In a thread that ends: glibc would keep freed pixels for each of the server's threads.
        with _large, ThreadPoolExecutor(1) as own:
            try:
                return own.submit(work, image).result()
            finally:
                image.close()  # frees its pixels before another picture's take their place


def _load(image: Image.Image) -> None:
    """Decode a picture, and rotate it according to its EXIF orientation if that can be read."""
    image.load()
    with suppress(Exception):  # many types; the pixels of a file with damaged metadata are whole
        ImageOps.exif_transpose(image, in_place=True)


def convert(image: Image.Image, invert: str = "auto") -> Converted:
    """Convert a picture of any size and mode.

    1. Rotate it according to its EXIF orientation, if that can be read.
    2. Put a transparent picture on black if its visible part is light, else on white, like the
       catalogue's background; on black if `invert` is "never", on white if it is "always".
    3. Convert to 8-bit grayscale; of 16 bits use the upper 8, of 32 the range that occurs.
    4. Invert it if `invert` is "always", or if it is "auto" and what is darker than the ground
       stands out more than what is lighter: the sums of the differences are compared. A shadow is
       smaller than its garment. The ground's level is the median of the four corner pixels. Only
       the corners, because a wide garment covers most of the border.

    An image of 28x28 pixels is finished here, and "auto" inverts it only if its corners are light,
    so a saved image of the dataset is returned unchanged (of its 70,000, none has such corners).
    For any other:

    5. Downscale it to at most `WORKING_SIZE`.
    6. Subtract the background level, again that of the corners. The authors did not need this:
       their background was nearly white. Photographs have grey ones, which must become black too.
    7. Crop to the pixels that are lighter than the background by more than
       `BACKGROUND_TOLERANCE`, after a 3x3 median filter has removed specks.
    8. Resize the longest edge to 28 with a Lanczos filter and centre on black. The authors
       subsampled and sharpened, which would amplify a photograph's noise.

    Args:
        image: the picture; may be modified in place.
        invert: "auto", "always" or "never".

    Raises:
        ValueError: nothing stands out from the background.
    """
    _load(image)
    gray = _grayscale(image, invert)
    gray.thumbnail(WORKING_SIZE)
    if invert == "always" or (invert == "auto" and _is_dark_on_light(gray)):
        gray = ImageOps.invert(gray)
    cluttered = gray.size != SIZE and _is_cluttered(gray)
    if gray.size != SIZE:
        gray = ImageOps.pad(_garment(gray), SIZE, method=Image.Resampling.LANCZOS, color=0)
        if not np.any(np.asarray(gray) > BACKGROUND_TOLERANCE):
            raise ValueError("nothing stands out from the background")
    return Converted(torch.from_numpy(np.array(gray)).unsqueeze(0), cluttered)


def _grayscale(image: Image.Image, invert: str = "auto") -> Image.Image:
    # Pillow's own conversion of these modes clips at 255 instead of scaling.
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        image.thumbnail(WORKING_SIZE)
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        return Image.fromarray(
            np.interp(values, (values.min(), values.max()), (0, 255)).astype(np.uint8)
        )
    return _opaque(image, "L", invert)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _grayscale(image).convert("RGB")
    return _opaque(image, "RGB")


def _opaque(image: Image.Image, mode: str, invert: str = "auto") -> Image.Image:
    """Convert to L or RGB; put what is transparent on black or white, as `convert` says."""
    if not image.has_transparency_data:
        return image.convert(mode)
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    gray, visible = rgba.convert("L"), rgba.getchannel("A")
    light = invert == "never" or (
        invert == "auto" and ImageStat.Stat(gray, visible.point(OPAQUE)).mean[0] > 127
    )
    canvas = Image.new(mode, image.size, "black" if light else "white")
    canvas.paste(gray if mode == "L" else rgba.convert(mode), mask=visible)
    return canvas


def _is_dark_on_light(gray: Image.Image) -> bool:
    ground = _background(gray)
    if gray.size == SIZE:
        return ground > 127
    difference = np.asarray(gray, dtype=int) - ground
    lighter, darker = (
        part[part > BACKGROUND_TOLERANCE].sum() for part in (difference, -difference)
    )
    return bool(darker > lighter)


def _background(gray: Image.Image) -> int:
    corners = np.asarray(gray)[[0, 0, -1, -1], [0, -1, 0, -1]]
    return int(np.median(corners))


def _is_cluttered(gray: Image.Image) -> bool:
    """Judge the ground by the picture's edge, where there is little of the garment.

    A garment that fills the picture covers up to a quarter of the edge, and its outline is a small
    part of it. The limits were chosen on made-up pictures (benchmarks/README.md).
    """
    smooth = gray.filter(ImageFilter.MedianFilter(3))
    blurred = smooth.filter(ImageFilter.GaussianBlur(min(gray.size) / 40))
    width = 1 + min(gray.size) // 28
    edge = np.ones((gray.height, gray.width), dtype=bool)
    edge[width:-width, width:-width] = False
    levels = np.asarray(smooth, dtype=int)[edge]
    uneven = np.abs(levels - _background(smooth)) > BACKGROUND_TOLERANCE
    texture = np.abs(levels - np.asarray(blurred, dtype=int)[edge])
    return bool(uneven.mean() > MAX_UNEVEN or np.median(texture) > MAX_TEXTURE)


def _garment(gray: Image.Image) -> Image.Image:
    """Crop to the garment, if one is found, and make the background black."""
    smooth = gray.filter(ImageFilter.MedianFilter(3))
    ground = Image.new("L", gray.size, _background(smooth))
    lighter = ImageChops.subtract(smooth, ground)
    box = lighter.point([255 * (level > BACKGROUND_TOLERANCE) for level in range(256)]).getbbox()
    return ImageChops.subtract(gray, ground).crop(box)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in one of the formats {', '.join(IMAGE_FORMATS)}"
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return next(iter(text.splitlines()), type(error).__name__)
