"""A picture is read whole, at a size and in a number of channels."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fashion.portable import conversion
from fashion.portable.conversion import Description, describe, fit
from tests.pictures import noise, write

ORIENTATION = 274


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_the_right_size_is_unchanged(tmp_path: Path, channels: int) -> None:
    levels = noise(0, 9, 7, channels)
    image = fit(write(tmp_path / "a.png", levels), (channels, 9, 7))
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert image.permute(1, 2, 0).numpy().tolist() == levels.reshape(9, 7, channels).tolist()


def test_the_whole_picture_is_scaled_to_the_size_and_nothing_is_cut_off() -> None:
    # White edges of a picture four times as wide as high are still at the edges.
    levels = np.zeros((40, 160), dtype=np.uint8)
    levels[:, :16] = levels[:, -16:] = levels[:4] = 255
    image = fit(encoded(Image.fromarray(levels)), (1, 10, 10))[0]
    assert (image[:, 0] > 200).all()
    assert (image[:, -1] > 200).all()
    assert (image[0] > 200).all()
    assert (image[3:, 3:-3] == 0).all()


def test_downscaling_averages() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = fit(encoded(Image.fromarray(board.astype(np.uint8))), (1, 8, 8))
    assert (image.float() - 127.5).abs().max() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_turned_photograph_is_upright(kind: str) -> None:
    levels = np.zeros((40, 60, 3), dtype=np.uint8)
    levels[:, :30, 0] = 255  # red on the left
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turn by 90 degrees clockwise
    image = fit(encoded(Image.fromarray(levels), kind, exif=exif), (3, 8, 8)).int()
    assert image[0, 0].min() > 200  # red on top
    assert image[0, -1].max() < 60


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("level", "ground"), [(250, 0), (20, 255)])
def test_what_is_transparent_becomes_black_behind_light_and_white_behind_dark(
    channels: int, level: int, ground: int
) -> None:
    picture = Image.new("RGBA", (8, 8))
    picture.paste((level, level, level, 255), (0, 0, 4, 8))
    image = fit(encoded(picture), (channels, 8, 8))
    assert (image[:, :, :3] == level).all()
    assert (image[:, :, 5:] == ground).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_the_upper_eight(channels: int) -> None:
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1_000
    image = fit(encoded(Image.fromarray(levels)), (channels, 8, 8))
    assert (image.numpy() == (levels >> 8)).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_are_scaled_to_the_range_that_occurs(kind: type) -> None:
    levels = np.linspace(-70_000, 90_000, 64).astype(kind).reshape(8, 8)
    image = fit(encoded(Image.fromarray(levels), "TIFF"), (3, 8, 8))
    assert (image[:, 0, 0] == 0).all()
    assert (image[:, -1, -1] == 255).all()


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("L", (8, 8), level) for level in (10, 200)]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (fit(file, (1, 8, 8)) == 10).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 12, 20)])
def test_every_mode_gives_the_shape(mode: str, shape: tuple[int, int, int]) -> None:
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    assert fit(encoded(Image.new(mode, (30, 20)), kind), shape).shape == shape


def test_a_jpeg_is_decoded_at_a_part_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = conversion._load
    monkeypatch.setattr(
        conversion, "_load", lambda image: (loaded.append(image.size), load(image))[1]
    )
    fit(encoded(Image.new("RGB", (1600, 1200)), "JPEG"), (3, 64, 64))
    assert loaded == [(200, 150)]


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
@pytest.mark.parametrize("read", [lambda source: fit(source, (1, 8, 8)), describe])
def test_what_is_no_picture_is_refused_in_one_line(content: bytes, read) -> None:
    with pytest.raises(ValueError, match="not an image in one of the formats") as caught:
        read(content)
    assert str(caught.value).isprintable()


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.new("1", (8_000, 8_000)).save(large)
    for read in (lambda source: fit(source, (1, 8, 8)), describe):
        with pytest.raises(ValueError, match="8000x8000 pixels exceed the limit"):
            read(large)


def test_a_cut_file_is_described_but_not_fitted() -> None:
    cut = encoded(Image.fromarray(noise(1, 40, 30)))[:-500]
    assert describe(cut) == Description(30, 40, False)
    with pytest.raises(ValueError, match="truncated"):
        fit(cut, (3, 8, 8))


@pytest.mark.parametrize(
    ("mode", "grey"), [("1", True), ("L", True), ("LA", True), ("I;16", True), ("P", False)]
)
def test_grey_is_told_by_the_header(mode: str, grey: bool) -> None:
    assert describe(encoded(Image.new(mode, (3, 2)))) == Description(3, 2, grey)


def test_processes_take_turns_at_large_pictures() -> None:
    class Turn:
        taken = 0

        def __enter__(self) -> None:
            self.taken += 1

        def __exit__(self, *_: object) -> None:
            pass

    before, turn = conversion._large, Turn()
    conversion.share_turns(turn)
    try:
        fit(encoded(Image.new("L", (2_100, 2_000))), (1, 8, 8))
        fit(encoded(Image.new("L", (2_100, 2_000)), "JPEG"), (1, 8, 8))  # decoded small
    finally:
        conversion.share_turns(before)
    assert turn.taken == 1
